"""Where figures go, and what they say of their origin."""

import argparse
import json
import subprocess

import pytest

from workbench import record


def test_a_new_folder_is_made(tmp_path):
    path = record.place(str(tmp_path / "new" / "a.json"))
    assert not path.exists()
    record.write(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    record.write(None, {"a": 1})


def test_no_place_for_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be made"):
        record.place(str(tmp_path / "file" / "a.json"))
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder: give the path"):
        record.place(str(tmp_path))


@pytest.fixture
def repository(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "PACKED", tmp_path / "COMMIT")
    return tmp_path


def test_the_commit_and_whether_files_differ(repository):
    def git(*words):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *names, *words], cwd=repository, check=True)

    git("init", "--quiet")
    (repository / "a").write_text("a")
    git("add", "a")
    git("commit", "--quiet", "-m", "a")
    git("tag", "-a", "v1", "-m", "v1")
    found = record.commit()
    assert len(found) == 40
    (repository / "a").write_text("b")
    assert record.commit() == f"{found}-dirty"


def test_the_commit_of_what_was_packed(repository):
    (repository / "COMMIT").write_text("1234\n")
    assert record.commit() == "1234"


def test_versions_are_of_what_is_there():
    found = record.origin("max", "no-such-package-anywhere")
    assert found.keys() == {"date", "commit", "max"}
