"""bfloat16 weights in 12 bits: packed without loss, where they can be."""

import math

import ml_dtypes
import numpy as np
import pytest

from max_mistral import kernels
from max_mistral.errors import UserError
from max_mistral.kernels.narrow import (
    TooManyExponentsError,
    head_bytes,
    kept_lines,
)
from max_mistral.kernels.packing import Encoding, pack, packed_shape
from max_mistral.weights.heads import split_rotary
from max_mistral.weights.kept import KeptMatrices
from max_mistral.weights.packed import pack_matrix
from tests.harness import store

NARROW = Encoding.BF16_IN_12_BITS
FIXED = 0x807F807F


def weight(rows, columns, scale=0.02):
    values = np.random.default_rng(0).standard_normal((rows, columns))
    return (values * scale).astype(ml_dtypes.bfloat16)


def bits(values):
    return values.view(np.uint16)


def turned_left(word, count):
    return (word << count | word >> (32 - count)) & 0xFFFFFFFF


def unpacked(packed, columns):
    """Reads panels as ``narrow.mojo`` describes them, bit by bit."""
    start, lines = head_bytes(columns), columns // 2
    panels = []
    for panel in packed:
        once, twice = panel[:64].view(np.uint16).reshape(2, 16)
        assert np.array_equal(once, twice)
        numbers = panel[64:start].view(np.uint32).tolist()
        groups = panel[start : start + 24 * columns].view(np.uint32)
        groups = groups.reshape(-1, 3, 16).astype(np.uint64)
        whole = panel[start + 24 * columns :].view(np.uint32).reshape(-1, 16)
        found = np.zeros((lines, 16), np.uint32)
        for line in range(lines):
            group, i = groups[line // 4], line % 4
            fixed = turned_left(group[i // 2], 8 * (i % 2))
            places = group[2] >> 4 * i
            low, high = (once[(places >> half) & 15] for half in (0, 16))
            found[line] = fixed & FIXED | low | high.astype(np.uint64) << 16
        kept = numbers[: numbers.index(lines)]
        assert kept == sorted(set(kept))
        found[kept] = whole[: len(kept)]
        panels.append(np.ascontiguousarray(found.T).view(np.uint16))
    return np.concatenate(panels)


@pytest.mark.parametrize("columns", [8, 64, 520, 2048])
def test_no_bit_is_lost(columns):
    values = weight(64, columns)
    # Beside the exponents that most of a panel's weights have.
    values[3, 1], values[3, columns - 1], values[40, 2] = 1e-30, -0.0, 3e38
    packed = pack(values.view(np.uint8), NARROW, columns)
    assert packed.shape == packed_shape(NARROW, *values.shape)
    assert np.array_equal(unpacked(packed, columns), bits(values))


@pytest.mark.parametrize("columns", [2048, 4096, 14336])
def test_it_is_a_fifth_smaller(columns):
    size = math.prod(packed_shape(NARROW, 4096, columns))
    assert 0.78 < size / (4096 * columns * 2) < 0.8


@pytest.mark.parametrize("scale", [0, 1e-38, 5e37])
def test_weights_of_any_size(scale):
    values = weight(16, 256, scale)
    packed = pack(values.view(np.uint8), NARROW, 256)
    assert np.array_equal(unpacked(packed, 256), bits(values))


def test_rows_of_several_sizes():
    """Panels have exponents of their own: here from 2^-40 to 2^40."""
    values = weight(64, 512).astype(np.float64)
    values *= np.repeat(2.0 ** np.array([-40, 0, 7, 40]), 16)[:, None]
    values = values.astype(ml_dtypes.bfloat16)
    packed = pack(values.view(np.uint8), NARROW, 512)
    assert np.array_equal(unpacked(packed, 512), bits(values))


def test_the_last_panel_has_fewer_rows():
    values = weight(20, 64)
    packed = pack(values.view(np.uint8), NARROW, 64)
    assert np.array_equal(unpacked(packed, 64)[:20], bits(values))


@pytest.mark.parametrize("more", [0, 1])
def test_a_panel_keeps_so_many_lines_whole(more):
    values = weight(16, 512)
    assert not lines_kept(values)
    # From the last line on, so that all of them are in a row.
    count = kept_lines(512) + more
    values[5, -2 * count :] = 2.0**-100
    if more:
        with pytest.raises(TooManyExponentsError):
            pack(values.view(np.uint8), NARROW, 512)
    else:
        packed = pack(values.view(np.uint8), NARROW, 512)
        assert np.array_equal(unpacked(packed, 512), bits(values))


def lines_kept(values):
    """How many lines of a panel have exponents that the others do not."""
    exponents = bits(values) >> 7 & 0xFF
    low = int(np.sort(exponents, axis=None)[-1]) - 15
    return int((exponents < low).reshape(16, -1, 2).any(axis=(0, 2)).sum())


@pytest.mark.parametrize("share", [0.01, 0.5, 1])
def test_zeros_of_either_sign_fit(share):
    """As in what was quantized or pruned before."""
    values = weight(64, 512)
    chosen = np.random.default_rng(1).random(values.shape) < share
    values[chosen] = 0
    values[1::2] = -values[1::2]
    packed = pack(values.view(np.uint8), NARROW, 512)
    assert np.array_equal(unpacked(packed, 512), bits(values))


def test_few_samples_do_not_decide():
    """Where the columns that are looked at first mislead, all are."""
    values = weight(16, 16)
    values[:, ::8] = 2.0**-100
    packed = pack(values.view(np.uint8), NARROW, 16)
    assert np.array_equal(unpacked(packed, 16), bits(values))


def bfloat16_cpu(monkeypatch, *, amx=False, bfloat16=True):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(kernels, "has_amx", lambda: amx)


def packed_matrix(values, folder, kept=None, encoding=Encoding.BF16, **more):
    data = store(values, folder)
    return pack_matrix("w", data, values.shape, encoding, "w", "it", kept=kept, **more)


@pytest.mark.parametrize(
    ("cpu", "columns", "encoding"),
    [
        ({}, 64, NARROW),
        ({"amx": True}, 64, Encoding.BF16),
        ({"bfloat16": False}, 64, Encoding.BF16),
        ({}, 76, Encoding.BF16),
        ({}, 56, Encoding.BF16),
    ],
)
def test_where_memory_is_the_limit(monkeypatch, tmp_path, cpu, columns, encoding):
    bfloat16_cpu(monkeypatch, **cpu)
    values = weight(32, columns)
    found = packed_matrix(values, tmp_path)
    assert found.encoding == encoding
    want = pack(values.view(np.uint8), encoding, columns)
    assert np.array_equal(found.data, want)


def test_other_floats_stay_as_they_are(monkeypatch, tmp_path):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 64).astype(np.float16)
    found = packed_matrix(values, tmp_path, encoding=Encoding.F16)
    assert found.encoding == Encoding.F16


def test_weights_that_do_not_fit_stay_as_they_are(monkeypatch, tmp_path):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 512)
    values[::2] = 2.0**-100
    found = packed_matrix(values, tmp_path)
    assert found.encoding == Encoding.BF16
    want = pack(values.view(np.uint8), Encoding.BF16, 512)
    assert np.array_equal(found.data, want)


@pytest.mark.parametrize("fits", [True, False])
def test_a_later_start_packs_nothing(monkeypatch, tmp_path, fits):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 512)
    if not fits:
        values[::2] = 2.0**-100
    kept = KeptMatrices(tmp_path)
    first = packed_matrix(values, tmp_path, kept)

    def fail(*args):
        raise AssertionError("packed again")

    monkeypatch.setattr("max_mistral.weights.packed._packed", fail)
    second = packed_matrix(values, tmp_path, kept)
    assert second.encoding == first.encoding == (NARROW if fits else Encoding.BF16)
    assert np.array_equal(second.data, first.data)


def test_heads_are_put_in_order_first(monkeypatch, tmp_path):
    bfloat16_cpu(monkeypatch)
    values = weight(64, 128)
    found = packed_matrix(values, tmp_path, heads=2)
    assert found.encoding == NARROW
    want = split_rotary(bits(values), 2)
    assert np.array_equal(unpacked(found.data, 128), want)


@pytest.mark.parametrize("fits", [True, False])
def test_what_is_restored_is_restored_once(monkeypatch, fits):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 512)
    if not fits:
        values[::2] = 2.0**-100
    calls = []

    def restored():
        calls.append(1)
        return values.view(np.uint8)

    found = pack_matrix("w", restored, values.shape, Encoding.BF16, "w", "it")
    assert found.encoding == (NARROW if fits else Encoding.BF16)
    assert len(calls) == 1


def test_a_number_that_is_none_is_found(monkeypatch, tmp_path):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 64)
    values[5, 7] = np.nan
    with pytest.raises(UserError, match="at row 5, column 7"):
        packed_matrix(values, tmp_path)


def test_a_file_of_another_size_decides_nothing(monkeypatch, tmp_path):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 64)
    folder = tmp_path / "kept"
    folder.mkdir()
    kept = KeptMatrices(folder)
    (folder / "w.32x64.BF16.0").write_bytes(b"1")
    assert packed_matrix(values, tmp_path, kept).encoding == NARROW


def test_12_bits_come_before_16(monkeypatch, tmp_path):
    """A folder that a CPU with AMX has used too."""
    values, kept = weight(32, 64), KeptMatrices(tmp_path)
    for amx, encoding in [(False, NARROW), (True, Encoding.BF16), (False, NARROW)]:
        bfloat16_cpu(monkeypatch, amx=amx)
        assert packed_matrix(values, tmp_path, kept).encoding == encoding
