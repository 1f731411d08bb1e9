"""The Makefile and the scripts: what they make of the paths they are given."""

import os
import shlex
import shutil
import subprocess

import pytest

from workbench.demo import ROOT


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_the_makefile_takes_a_path_with_a_space(tmp_path, target):
    place = tmp_path / "two words"
    place.mkdir()
    shutil.copy(ROOT / "Makefile", place)
    result = run("make", "--dry-run", "--old-file", "build/smollm2", target, cwd=place)
    assert result.returncode == 0, result.stderr
    found = shlex.split(result.stdout.replace("\\\n", " "))
    path = place / "build" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert found[found.index("--weight-path") + 1] == str(path)


def test_a_fetch_that_failed_is_tried_again(tmp_path):
    script = tmp_path / "scripts" / "build_ik_llama.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "scripts" / script.name, script)
    stub = tmp_path / "bin" / "git"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\n[ "$1" = init ] && exec mkdir -p "$3"\nexit 9\n')
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        result = run("sh", script, env=dict(os.environ) | {"PATH": path})
        assert result.returncode == 9, result.stderr
        assert (tmp_path / "build" / "ik_llama" / "source").is_dir()
    (tmp_path / "mine").mkdir()
    result = run("sh", script, tmp_path / "mine")
    assert result.returncode == 1
    assert "has no CMakeLists.txt" in result.stderr
    assert not list((tmp_path / "mine").iterdir())


def test_no_parts_of_another_are_removed(tmp_path):
    (tmp_path / "part-time.txt").write_text("mine")
    result = run(ROOT / "scripts" / "pack_gpu.sh", tmp_path, "false")
    assert result.returncode == 1
    assert f"{tmp_path} is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["part-time.txt"]
