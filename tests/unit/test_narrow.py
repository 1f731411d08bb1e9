"""bfloat16 weights in 12 bits: packed without loss, where they can be."""

import ml_dtypes
import numpy as np
import pytest

from max_mistral import kernels
from max_mistral.kernels.narrow import (
    TooManyExponentsError,
    head_bytes,
    kept_lines,
)
from max_mistral.kernels.packing import Encoding, pack, packed_shape
from max_mistral.weights.kept import KeptMatrices
from max_mistral.weights.packed import pack_matrix
from tests.harness import store

NARROW = Encoding.BF16_IN_12_BITS
FIXED, EXPONENT = 0x807F807F, 0x07800780


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
        base, *numbers = map(int, panel[:start].view(np.uint32))
        groups = panel[start : start + 24 * columns].view(np.uint32)
        groups = groups.reshape(-1, 3, 16).astype(np.uint64)
        whole = panel[start + 24 * columns :].view(np.uint32).reshape(-1, 16)
        found = np.zeros((lines, 16), np.uint32)
        for line in range(lines):
            group, i = groups[line // 4], line % 4
            fixed = turned_left(group[i // 2], 8 * (i % 2))
            exponents = turned_left(group[2], 4 * i)
            found[line] = (fixed & FIXED | exponents & EXPONENT) + base
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


def test_a_panel_keeps_so_many_lines_whole():
    values = weight(16, 512)
    most = kept_lines(512)
    values[5, : 2 * most : 2] = 0
    packed = pack(values.view(np.uint8), NARROW, 512)
    assert np.array_equal(unpacked(packed, 512), bits(values))
    values[5, : 2 * most + 40 : 2] = 0
    with pytest.raises(TooManyExponentsError):
        pack(values.view(np.uint8), NARROW, 512)


def test_few_samples_do_not_decide():
    """Where the first columns that are looked at mislead, all are."""
    values = weight(16, 512)
    values[:, ::8] = 2.0**-100
    values[:, 4::8] = 2.0**-100
    with pytest.raises(TooManyExponentsError):
        pack(values.view(np.uint8), NARROW, 512)
    values[:, 4::8] = weight(16, 512)[:, 4::8]
    values[:, 8::8] = weight(16, 512)[:, 8::8]
    packed = pack(values.view(np.uint8), NARROW, 512)
    assert np.array_equal(unpacked(packed, 512), bits(values))


def bfloat16_cpu(monkeypatch, *, amx=False, bfloat16=True):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(kernels, "has_amx", lambda: amx)


def packed_matrix(values, folder, kept=None, encoding=Encoding.BF16):
    data = store(values, folder)
    return pack_matrix("w", data, values.shape, encoding, "w", "it", kept=kept)


@pytest.mark.parametrize(
    ("cpu", "columns", "encoding"),
    [
        ({}, 64, NARROW),
        ({"amx": True}, 64, Encoding.BF16),
        ({"bfloat16": False}, 64, Encoding.BF16),
        ({}, 60, Encoding.BF16),
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
    values[::2] = 0
    found = packed_matrix(values, tmp_path)
    assert found.encoding == Encoding.BF16
    want = pack(values.view(np.uint8), Encoding.BF16, 512)
    assert np.array_equal(found.data, want)


@pytest.mark.parametrize("fits", [True, False])
def test_a_later_start_packs_nothing(monkeypatch, tmp_path, fits):
    bfloat16_cpu(monkeypatch)
    values = weight(32, 512)
    if not fits:
        values[::2] = 0
    kept = KeptMatrices(tmp_path)
    first = packed_matrix(values, tmp_path, kept)

    def fail(*args):
        raise AssertionError("packed again")

    monkeypatch.setattr("max_mistral.weights.packed._packed", fail)
    second = packed_matrix(values, tmp_path, kept)
    assert second.encoding == first.encoding == (NARROW if fits else Encoding.BF16)
    assert np.array_equal(second.data, first.data)
