"""Packed matrices from an earlier start: those of this checkpoint and of this user."""

import ctypes
import logging
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from max.driver import DeviceSpec
from transformers import MistralConfig

from max_mistral import switches
from max_mistral.errors import UserError
from max_mistral.kernels.packing import Encoding
from max_mistral.own_folders import locked
from max_mistral.prepare.gguf_config import read_config
from max_mistral.weights import kept as module
from max_mistral.weights import mapped as files_module
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.kept import KeptMatrices
from max_mistral.weights.packed import PackedWeight, pack_matrix
from max_mistral.weights.unchanged import state_of
from tests.harness import load_safetensors, store
from tests.unit.test_gguf import write_gguf
from workbench.quantized import LAYOUTS, pipeline, write_quantized
from workbench.runner import make_pipeline_config

SHAPE = (3, 128)
CHANGED = "changed while the weights were loaded"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A home that is no one's; checkpoints of any size are kept there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_LEAST_BYTES", 0)
    return tmp_path / "cache" / "max_mistral" / module.FOLDER


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


class Packer:
    def __init__(self, value=7):
        self.value, self.runs = value, 0

    def __call__(self):
        self.runs += 1
        return np.full(SHAPE, self.value, np.uint8)


def matrix(checkpoint, packer, name="a", how=""):
    found = KeptMatrices.of([checkpoint], how).matrix(name, SHAPE, packer)
    assert found.shape == SHAPE
    assert np.all(found == packer.value)
    return found


def files(cache):
    return [path for path in cache.glob("*/*/*") if path.is_file()]


def test_it_is_packed_once(checkpoint, cache):
    packer = Packer()
    matrix(checkpoint, packer)
    # Mapped: it can be written to, as MAX asks, and the file does not change.
    matrix(checkpoint, packer)[0, 0] = 1
    matrix(checkpoint, packer)
    assert packer.runs == 1
    assert [path.name for path in files(cache)] == ["a"]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this system has no huge pages",
)
def test_huge_pages_are_asked_for(checkpoint, cache):
    """At its first start and at the next ones; what smaps calls ``hg``."""
    kept = [matrix(checkpoint, Packer()) for _ in range(2)]
    (file,) = files(cache)
    ours = mappings(str(file))
    assert len(ours) == len(kept)
    assert all(" hg " in text.partition("VmFlags:")[2] for text in ours)


def mappings(path):
    """What smaps says of each place where a file is mapped."""
    text = Path("/proc/self/smaps").read_text()
    return [
        each for each in re.split(r"^(?=[0-9a-f]+-)", text, flags=re.M) if path in each
    ]


def reads_ahead():
    """Whether Linux takes the advice, which it does from 5.14 on."""
    if sys.platform != "linux":
        return False
    page = mmap.mmap(-1, mmap.PAGESIZE)
    at = np.frombuffer(page, np.uint8).ctypes.data
    return not ctypes.CDLL(None).madvise(
        ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), 22
    )


@pytest.mark.skipif(not reads_ahead(), reason="this system does not")
def test_what_an_earlier_start_kept_is_read_ahead(checkpoint, cache):
    shape = (1, 3 * 2**24 + 5)  # more than one step
    for _ in range(2):
        kept = KeptMatrices.of([checkpoint])
        found = kept.matrix("a", shape, lambda: np.ones(shape, np.uint8))
        # What this start packed was in memory a moment ago.
        thread = kept.read_ahead()
    thread.join(30)
    assert not thread.is_alive()
    (file,) = files(cache)
    resident = [
        int(n) for n in re.findall(r"^Rss: +(\d+)", "".join(mappings(str(file))), re.M)
    ]
    assert sum(resident) * 1024 >= found.size
    assert not KeptMatrices().read_ahead()


def test_each_has_its_own(checkpoint):
    matrix(checkpoint, Packer(1), "a")
    matrix(checkpoint, Packer(2), "b")
    matrix(checkpoint, Packer(1), "a")
    matrix(checkpoint, Packer(3), "a", how="another quantization")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"weights, longer"),
        lambda path: os.utime(path, ns=(0, 1)),
    ],
    ids=["size", "time"],
)
def test_another_checkpoint_in_its_place(checkpoint, cache, change):
    matrix(checkpoint, Packer(1))
    change(checkpoint)
    matrix(checkpoint, Packer(2))
    assert len(files(cache)) == 1


def test_another_version_of_the_code(checkpoint, cache, monkeypatch):
    matrix(checkpoint, Packer(1))
    monkeypatch.setattr(module, "_code", lambda: "another")
    matrix(checkpoint, Packer(2))
    assert len(files(cache)) == 1


def test_two_files_with_the_same_bytes(checkpoint, tmp_path):
    matrix(checkpoint, Packer(1))
    other = tmp_path / "other.safetensors"
    shutil.copy2(checkpoint, other)
    matrix(other, Packer(2))


def test_no_other_user_can_write_to_it(checkpoint, cache):
    umask = os.umask(0)
    try:
        matrix(checkpoint, Packer())
    finally:
        os.umask(umask)
    for each in (cache, *cache.rglob("*")):
        assert not stat.S_IMODE(each.lstat().st_mode) & 0o077


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"short"),
        lambda path: path.write_bytes(bytes(SHAPE[0] * SHAPE[1] + 1)),
        lambda path: path.unlink(),
        lambda path: path.chmod(0o602),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.unlink() or path.mkdir(),
    ],
    ids=["cut", "longer", "gone", "file's mode", "folder's mode", "folder"],
)
def test_what_is_damaged_or_open_to_others_is_not_taken(checkpoint, cache, damage):
    matrix(checkpoint, Packer(1))
    damage(files(cache)[0])
    matrix(checkpoint, Packer(2))


def test_a_link_is_not_followed(checkpoint, cache, tmp_path):
    matrix(checkpoint, Packer(1))
    path = files(cache)[0]
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    matrix(checkpoint, Packer(2))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_not_taken(checkpoint, cache):
    matrix(checkpoint, Packer(1))
    os.chown(files(cache)[0], 4242, 4242)
    matrix(checkpoint, Packer(2))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_left_alone(checkpoint, cache, caplog):
    matrix(checkpoint, Packer(1))
    os.chown(cache, 4242, 4242)
    with caplog.at_level(logging.WARNING, logger="max.pipelines"):
        matrix(checkpoint, Packer(2))
    assert "belongs to another user" in caplog.text


def test_a_disk_that_is_full_keeps_nothing(checkpoint, cache, caplog, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module, "sync", full)
    packers = {name: Packer(i) for i, name in enumerate("abc")}
    kept = KeptMatrices.of([checkpoint])
    with caplog.at_level(logging.WARNING, logger="max.pipelines"):
        for name, packer in packers.items():
            assert np.all(kept.matrix(name, SHAPE, packer) == packer.value)
    assert caplog.text.count("No space left") == 1
    assert not files(cache)


def test_a_home_that_cannot_be_written_keeps_nothing(
    checkpoint, tmp_path, monkeypatch, caplog
):
    """Nor does the temporary folder, as it keeps kernels: it may be memory."""
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    packer = Packer()
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        matrix(checkpoint, packer)
        matrix(checkpoint, packer)
    assert packer.runs == 2
    assert caplog.text.count("Packed weights cannot be kept") == 2
    assert not list((tmp_path / "tmp").iterdir())


def test_what_would_fill_the_disk_is_not_kept(checkpoint, cache, monkeypatch):
    usage = SimpleNamespace(free=27)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    matrix(checkpoint, Packer(1))
    assert not files(cache)
    usage.free = 28
    matrix(checkpoint, Packer(1))
    assert len(files(cache)) == 1


def test_a_disk_that_fills_up_has_its_room_back(checkpoint, cache, monkeypatch):
    """But not what another process wrote, nor the folder, to which it may write."""
    matrix(checkpoint, Packer(1), "theirs")
    kept = KeptMatrices.of([checkpoint])
    kept.matrix("ours", SHAPE, Packer(2))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module, "sync", full)
    kept.matrix("last", SHAPE, Packer(3))
    assert [path.name for path in files(cache)] == ["theirs"]


def test_another_process_goes_on_where_a_write_failed(checkpoint, cache, monkeypatch):
    ours, theirs = KeptMatrices.of([checkpoint]), KeptMatrices.of([checkpoint])
    with monkeypatch.context() as once:
        once.setattr(module, "write", Mock(side_effect=OSError(5, "I/O error")))
        ours.matrix("a", SHAPE, Packer(1))
    theirs.matrix("a", SHAPE, Packer(1))
    assert len(files(cache)) == 1
    # An empty folder has no claim to room.
    files(cache)[0].unlink()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    matrix(checkpoint, Packer(1))
    assert not files(cache)


def test_starts_at_the_same_time_leave_each_other_their_folder(
    checkpoint, cache, monkeypatch
):
    """The second one finds no folder, and then waits while the first one makes it."""
    at_sweep, may_sweep = threading.Event(), threading.Event()
    sweep, folders = module._sweep, []

    def slow(folder):
        at_sweep.set()
        assert may_sweep.wait(30)
        sweep(folder)

    def start():
        kept = KeptMatrices.of([checkpoint])
        kept.matrix("a", SHAPE, Packer(1))
        folders.append(kept._folder)

    sweeps = Mock(side_effect=slow)
    monkeypatch.setattr(module, "_sweep", sweeps)
    threads = [threading.Thread(target=start) for _ in range(2)]
    threads[0].start()
    assert at_sweep.wait(30)
    threads[1].start()
    time.sleep(0.2)  # for the second one to come to the lock
    may_sweep.set()
    for thread in threads:
        thread.join(30)
    assert sweeps.call_count == 1
    assert folders[0] == folders[1] is not None
    assert len(files(cache)) == 1


def test_a_lock_that_is_not_given_back_hangs_no_start(
    checkpoint, cache, monkeypatch, caplog
):
    matrix(checkpoint, Packer(1))
    (folder,) = cache.iterdir()
    monkeypatch.setattr(module, "_LONGEST_WAIT", 0.2)
    with locked(folder):
        # What is kept is taken without it.
        matrix(checkpoint, Packer(1))
        assert not caplog.text
        with caplog.at_level(logging.WARNING, logger="max.pipelines"):
            matrix(checkpoint, Packer(2), how="another quantization")
        assert "has had" in caplog.text
        assert len(files(cache)) == 1
    matrix(checkpoint, Packer(2), how="another quantization")
    # The lock stays where it is while the folder is swept.
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"lock"}


def test_a_small_one_is_not_kept(checkpoint, cache, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_BYTES", 8)
    matrix(checkpoint, Packer())
    assert not cache.exists()


def test_what_was_not_used_for_a_month_goes(checkpoint, cache, tmp_path):
    matrix(checkpoint, Packer(1))
    (old,) = cache.iterdir()
    before = time.time() - 31 * 24 * 3600
    os.utime(old, (before, before))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    matrix(other, Packer(2))
    assert not old.exists()
    # The next start of the other one counts as its use.
    (new,) = cache.iterdir()
    os.utime(new, (before, before))
    matrix(other, Packer(2))
    matrix(checkpoint, Packer(1))
    assert new.exists()


def test_what_a_killed_process_left_goes(checkpoint, cache):
    matrix(checkpoint, Packer())
    (kept,) = files(cache)
    left = [kept.with_name(f"{module.PARTIAL}{i}") for i in range(2)]
    for path in left:
        path.write_bytes(b"half")
    before = time.time() - 2 * 3600
    os.utime(left[0], (before, before))
    matrix(checkpoint, Packer())
    # The other one may be being written.
    assert sorted(files(cache)) == sorted([kept, left[1]])


def test_nothing_is_kept_where_it_is_off(checkpoint, cache, monkeypatch):
    monkeypatch.setenv(switches.KEEP_PACKED, "off")
    matrix(checkpoint, Packer())
    monkeypatch.delenv(switches.KEEP_PACKED)
    monkeypatch.setattr(module, "is_virtual_device_mode", lambda: True)
    matrix(checkpoint, Packer())
    assert not cache.exists()


@pytest.mark.parametrize("value", ["", "On", "1", "yes"])
def test_another_value_is_refused(checkpoint, monkeypatch, value):
    monkeypatch.setenv(switches.KEEP_PACKED, value)
    with pytest.raises(UserError, match=r"KEEP_PACKED is .* to on or off"):
        KeptMatrices.of([checkpoint])


def test_a_matrix_packed_in_another_way_is_another(checkpoint, tmp_path):
    values = np.random.default_rng(0).standard_normal((16, 8), dtype=np.float32)
    data = store(values, tmp_path)
    pack = partial(pack_matrix, "w", data, tensor="w", source="it")
    for options in ({}, {"heads": 2}, {"heads": 4}, {"shape": (8, 16)}):
        options = {"shape": (16, 8), "encoding": Encoding.F32} | options
        made = pack(**options)
        kept = [
            pack(kept=KeptMatrices.of([checkpoint]), **options).data for _ in range(2)
        ]
        assert all(np.array_equal(each, made.data) for each in kept), options


def same(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert np.array_equal(
            np.from_dlpack(weight.data), np.from_dlpack(second[name].data)
        )
    return sum(isinstance(weight, PackedWeight) for weight in first.values())


def test_another_file_of_the_same_size_and_time_is_another(checkpoint, cache):
    os.utime(checkpoint, ns=(0, 0))
    matrix(checkpoint, Packer(1))
    checkpoint.write_bytes(b"WEIGHTS")
    os.utime(checkpoint, ns=(0, 0))
    matrix(checkpoint, Packer(2))
    assert len(files(cache)) == 1


@pytest.mark.parametrize("kept_before", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_a_file_that_changes_as_it_is_read_is_refused(
    checkpoint, cache, kept_before, early
):
    """Early: before its cache is looked for, which is after its header is read."""
    state = state_of([checkpoint])
    if kept_before:
        matrix(checkpoint, Packer(1))
    if early:
        checkpoint.write_bytes(b"another one")
    kept = KeptMatrices.of([checkpoint], state=state)
    if not early:
        checkpoint.write_bytes(b"another one")
    with pytest.raises(UserError, match=CHANGED):
        kept.matrix("a", SHAPE, Packer(1))
    assert len(files(cache)) == kept_before


def test_a_gguf_file(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf")
    checkpoint = GGUFCheckpoint(path)
    config = MistralConfig(**read_config(checkpoint))
    load = partial(checkpoint.weights, config, packed=True)
    found = [dict(load(kept=KeptMatrices.of([path]))) for _ in range(2)]
    count = same(found[0], dict(load()))
    assert same(found[1], found[0]) == count == len(files(cache))


def test_safetensors(checkpoints, cache):
    on_cpu = make_pipeline_config(checkpoints["gqa"])
    found = [load_safetensors(on_cpu) for _ in range(2)]
    count = same(*found)
    assert 0 < count == len(files(cache))


@pytest.mark.parametrize("name", ["block", "native"])
def test_fp8_that_becomes_bfloat16(tmp_path, cache, name):
    write_quantized(tmp_path / "fp8", LAYOUTS[name])
    on_cpu = pipeline(
        tmp_path / "fp8",
        device_specs=[DeviceSpec.cpu()],
        quantization_encoding="float32",
        weight_path=[tmp_path / "fp8" / "model.safetensors"],
    )
    found = [load_safetensors(on_cpu) for _ in range(2)]
    assert 0 < same(*found) == len(files(cache))
