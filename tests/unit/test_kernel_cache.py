"""The compiled kernels: taken whole and from this user's own files, or made anew."""

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from max_mistral import kernels
from max_mistral.errors import UserError
from max_mistral.kernels import cache, compiler
from max_mistral.kernels.cache import FILE, cached

GOOD = b"kernels" * 1000


class Compiler:
    def __init__(self):
        self.runs = 0

    def __call__(self, path):
        self.runs += 1
        path.write_bytes(GOOD)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Homes that are no one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    cache._own_root.cache_clear()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_is_made_once_and_its_path_stays(tmp_path):
    compiler = Compiler()
    path = cached("abc", compiler)
    assert path == tmp_path / "cache" / "max_mistral" / "abc" / FILE
    assert path.read_bytes() == GOOD
    assert cached("abc", compiler) == path
    assert compiler.runs == 1
    assert names(path.parent) == ["lock", FILE, FILE + ".sha256"]


def test_no_other_user_can_write_to_it(monkeypatch):
    umask = os.umask(0)
    try:
        path = cached("abc", Compiler())
    finally:
        os.umask(umask)
    for each in (path, path.with_name(FILE + ".sha256"), path.parent):
        assert not stat.S_IMODE(each.lstat().st_mode) & 0o077
    assert not stat.S_IMODE(path.parent.parent.stat().st_mode) & 0o077


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(GOOD[:-1]),
        lambda path: path.write_bytes(b"K" + GOOD[1:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.with_name(FILE + ".sha256").unlink(),
        lambda path: path.with_name(FILE + ".sha256").write_bytes(b"\xff"),
        lambda path: path.chmod(0o777),
        lambda path: path.chmod(0o620),
        lambda path: path.with_name(FILE + ".sha256").chmod(0o602),
        lambda path: path.parent.chmod(0o777),
    ],
    ids=["cut", "flipped", "empty", "gone", "no sum", "bad sum"]
    + ["777", "group", "sum's mode", "folder's mode"],
)
def test_what_is_damaged_or_open_to_others_is_made_anew(damage):
    compiler = Compiler()
    path = cached("abc", compiler)
    damage(path)
    assert cached("abc", compiler) == path
    assert path.read_bytes() == GOOD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    runs = compiler.runs
    assert cached("abc", compiler) == path
    assert compiler.runs == runs


def test_a_link_is_not_followed(tmp_path):
    compiler = Compiler()
    path = cached("abc", compiler)
    (tmp_path / "other").write_bytes(GOOD)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    assert cached("abc", compiler) == path
    assert compiler.runs == 2
    assert not path.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["file", "sum"])
def test_a_file_of_another_user_is_not_run(what):
    compiler = Compiler()
    path = cached("abc", compiler)
    given = path if what == "file" else path.with_name(FILE + ".sha256")
    os.chown(given, 4242, 4242)
    assert cached("abc", compiler) == path
    assert compiler.runs == 2
    assert path.stat().st_uid == os.geteuid()


def test_a_folder_of_another_user_is_left_alone(tmp_path, monkeypatch, caplog):
    path = cached("abc", Compiler())
    compiler = Compiler()
    owner = path.stat().st_uid
    root = tmp_path / "cache" / "max_mistral"
    real = os.lstat

    # Root may do anything, and a test may not be root: so the owner is made up.
    def lstat(self):
        found = list(real(self))
        if self == root:
            found[stat.ST_UID] = owner + 4242
        return os.stat_result(found)

    monkeypatch.setattr(cache.Path, "lstat", lstat)
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        found = cached("abc", compiler)
    assert found == tmp_path / "tmp" / f"max_mistral-{os.geteuid()}" / "abc" / FILE
    assert compiler.runs == 1
    assert "belongs to another user" in caplog.text
    assert cached("abc", compiler) == found
    assert compiler.runs == 1


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiler = Compiler()
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        path = cached("abc", compiler)
    assert path.parent.parent.parent == tmp_path / "tmp"
    assert "cannot be kept in" in caplog.text
    assert cached("abc", compiler) == path
    assert compiler.runs == 1


def test_no_home_at_all(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", homeless)
    assert cached("abc", Compiler()).is_relative_to(tmp_path / "tmp")


def test_neither_home_nor_a_place_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "tmp" / f"max_mistral-{os.geteuid()}").write_text("squatter")
    compiler = Compiler()
    path = cached("abc", compiler)
    assert path.is_relative_to(tmp_path / "tmp")
    assert cached("abc", compiler) == path
    assert compiler.runs == 1


def test_a_folder_for_one_process_goes_with_it(tmp_path):
    code = (
        "from max_mistral.kernels.cache import _own_root\n"
        "root = _own_root()\n"
        "(root / 'abc').mkdir()\n"
        "print(root)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    root = Path(ran.stdout.split()[-1])
    assert root.parent == tmp_path
    assert not root.exists()


def test_a_relative_home_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = cached("abc", Compiler())
    assert path.is_relative_to(tmp_path / "home" / ".cache" / "max_mistral")


def test_what_killed_compilers_left_is_removed(tmp_path):
    root = tmp_path / "cache" / "max_mistral"
    for name in ("abc/tmpkilled", "old/tmpkilled", "old/tmprunning"):
        (root / name).mkdir(parents=True)
        (root / name / FILE).write_bytes(b"half")
    then = time.time() - 7 * 3600
    os.utime(root / "old" / "tmpkilled", (then, then))
    cached("abc", Compiler())
    assert names(root / "abc") == ["lock", FILE, FILE + ".sha256"]
    assert names(root / "old") == ["tmprunning"]


def test_a_failure_leaves_nothing(tmp_path):
    def fails(path):
        path.write_bytes(b"half")
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        cached("abc", fails)
    assert names(tmp_path / "cache" / "max_mistral" / "abc") == ["lock"]


def test_kernels_that_do_not_compile(monkeypatch):
    def fails(*_, **__):
        raise subprocess.CalledProcessError(1, "mojo", stderr="no such operation")

    monkeypatch.setattr(compiler, "subprocess_run_mojo", fails)
    with pytest.raises(UserError, match="do not compile:\nno such operation\nMAX_"):
        kernels.library()


def test_a_cache_that_is_a_link(tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "cache" / "max_mistral").symlink_to(tmp_path / "other")
    with caplog.at_level(logging.WARNING, "max.pipelines"):
        assert cached("abc", Compiler()).is_relative_to(tmp_path / "tmp")
    assert "is a link" in caplog.text
    assert "set XDG_CACHE_HOME to a folder of your own" in caplog.text


def compile_slowly(path):
    with (path.parent.parent / "runs").open("a") as file:
        file.write("x")
    time.sleep(0.2)
    path.write_bytes(GOOD + os.urandom(8))


def test_of_many_at_once_one_compiles(tmp_path):
    """Locks are those of open files, so threads stand for processes."""
    barrier = threading.Barrier(4)

    def start(_):
        barrier.wait()
        return cached("abc", compile_slowly).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(start, range(4)))
    assert len(found) == 1
    folder = tmp_path / "cache" / "max_mistral" / "abc"
    assert (folder / "runs").read_text() == "x"
