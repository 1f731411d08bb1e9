"""What the max-mistral command prepares, and keeps for the next time."""

import errno
import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from max_mistral import own_folders
from max_mistral.command import model_cache
from max_mistral.errors import UserError
from max_mistral.prepare.atomic import PARTIAL
from tests.commands import value
from tests.unit.test_embeddings import write_recipe
from tests.unit.test_gguf import write_gguf
from workbench.checkpoints import BASE, write_native


def test_a_changed_file_is_prepared_anew(run, gguf):
    _, first, _ = run("generate", gguf)
    write_gguf(gguf, eos=1)
    os.utime(gguf, ns=(1, 1))
    _, second, _ = run("generate", gguf)
    assert value(second, "--model") != value(first, "--model")
    assert prepared_config(second)["eos_token_id"] == 1


def test_a_changed_file_of_a_folder_is_prepared_anew(run, tmp_path):
    source = write_native(tmp_path / "native", BASE)
    run("generate", source)
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"norm_eps": 2e-5}))
    _, second, err = run("generate", source)
    assert "Preparing" in err
    assert prepared_config(second)["rms_norm_eps"] == 2e-5


def test_a_changed_file_of_a_folder_within_is_prepared_anew(run, tmp_path):
    source = write_recipe(write_native(tmp_path / "native", BASE))
    run("generate", source)
    pooling = source / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "lasttoken"}))
    _, second, err = run("generate", source)
    assert "Preparing" in err
    copied = Path(value(second, "--model")) / "1_Pooling" / "config.json"
    assert copied.read_text() == pooling.read_text()
    assert "Preparing" not in run("generate", source)[2]


def prepared_config(command):
    """The config.json of the folder that a command names."""
    return json.loads((Path(value(command, "--model")) / "config.json").read_text())


@pytest.fixture
def copied_code(tmp_path, monkeypatch):
    """A copy of this package's sources, which count in the place of them."""
    sources = tmp_path / "sources"
    shutil.copytree(model_cache._SOURCES, sources)
    monkeypatch.setattr(model_cache, "_SOURCES", sources)
    yield sources
    model_cache._code.cache_clear()


@pytest.mark.parametrize(
    "name", ["prepare/gguf_config.py", "prepare/lora/gguf.py", "fields.py"]
)
def test_other_code_prepares_anew(run, gguf, copied_code, name):
    _, first, _ = run("generate", gguf)
    with (copied_code / name).open("a") as file:
        file.write("# mended")
    model_cache._code.cache_clear()
    _, second, _ = run("generate", gguf)
    assert value(second, "--model") != value(first, "--model")


def test_another_version_of_a_library_prepares_anew(run, gguf, monkeypatch):
    def another(name):
        # It has a version only where it is installed.
        assert name != "max_mistral"
        return "0.0"

    _, first, _ = run("generate", gguf)
    monkeypatch.setattr(own_folders, "version", another)
    model_cache._code.cache_clear()
    _, second, _ = run("generate", gguf)
    model_cache._code.cache_clear()
    assert value(second, "--model") != value(first, "--model")


def test_what_a_group_may_write_to_is_prepared_once(run, tmp_path):
    source = write_native(tmp_path / "native", BASE, dtype="bfloat16")
    for path in source.iterdir():
        path.chmod(0o664)
    assert (source / "tekken.json").exists()
    assert "Preparing" in run("generate", source)[2]
    assert "Preparing" not in run("generate", source)[2]


def test_what_nobody_has_used_for_a_month_goes(run, gguf):
    folder = Path(value(run("generate", gguf)[1], "--model"))
    models = folder.parent
    left = models / f"{PARTIAL}x" / "folder"
    left.mkdir(parents=True)
    for name, days in (("old", 31), ("new", 29), (folder.name, 31)):
        (models / name).mkdir(exist_ok=True)
        then = time.time() - days * 24 * 3600
        os.utime(models / name, (then, then))
    # It is used now.
    assert value(run("generate", gguf)[1], "--model") == str(folder)
    names = {path.name for path in models.iterdir()}
    assert names == {"new", "lock", folder.name}
    # So it is where max itself loads it.
    os.utime(folder, (0, 0))
    own_folders.note_use(str(folder))
    assert time.time() - folder.stat().st_mtime < 60
    own_folders.note_use("mistralai/Mistral-7B-v0.1")


def test_a_source_that_cannot_be_read_is_not_the_caches_fault(run, gguf, monkeypatch):
    def unreadable(source, folder):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(model_cache, "prepare", unreadable)
    status, found, err = run("generate", gguf)
    assert (status, found) == (1, [])
    assert err.splitlines()[1:] == [f"Error: {gguf}: Permission denied."]


def test_no_other_user_can_write_to_it(run, gguf):
    before = os.umask(0)
    try:
        _, found, _ = run("generate", gguf)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    folder = Path(value(found, "--model"))
    for path in (folder.parent.parent, folder.parent, folder, *folder.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_have_written_is_made_anew(run, gguf, what):
    folder = Path(value(run("generate", gguf)[1], "--model"))
    config = folder / "config.json"
    good = config.read_text()
    config.write_text("{}")
    (folder if what == "folder" else config).chmod(0o777)
    assert value(run("generate", gguf)[1], "--model") == str(folder)
    assert config.read_text() == good
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o077


def test_a_cache_that_cannot_be_written(run, gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    _, found, err = run("generate", gguf)
    assert Path(value(found, "--model")).is_relative_to(tmp_path / "tmp")
    assert "Nothing can be kept in" in err
    shutil.rmtree(tmp_path / "tmp")
    (tmp_path / "tmp").touch()
    status, _, err = run("generate", gguf)
    assert status == 1
    assert "no folder to prepare the model in" in err


def test_a_failure_leaves_nothing(run, tmp_path):
    source = write_gguf(tmp_path / "g.gguf", architecture="gemma")
    assert run("serve", source)[0] == 1
    models = tmp_path / "cache" / "max_mistral" / "models"
    assert [path.name for path in models.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_cache_that_is_full(gguf, monkeypatch, number):
    def fail(source, folder):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(model_cache, "prepare", fail)
    full = number == errno.ENOSPC
    with pytest.raises(UserError if full else OSError, match=r"no folder|error"):
        model_cache.prepared(gguf, print)
