"""``scripts/pack_gpu.sh``: what it asks for first, and what it makes of a Python."""

import os
import subprocess

import pytest

from tests.script_trees import copied_tree, fake, run  # noqa: F401

# What a Python of the packed version answers.
VERSION = '[ "$1" = -V ] && echo Python 3.12.9 && exit'


def add_model(tree):
    (tree / "build" / "smollm2").mkdir(parents=True)
    (tree / "build" / "smollm2" / "config.json").touch()
    (tree / "build" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()


def test_what_packing_needs_is_asked_for_first(tree, tmp_path):
    def said(*arguments):
        done = run(tree, "pack_gpu.sh", *arguments)
        assert done.returncode == 1
        return done.stderr

    parts = tmp_path / "parts"
    assert said() == "usage: scripts/pack_gpu.sh PARTS [PYTHON]\n"
    assert "There is no python0: give a PYTHON." in said(parts, "python0")
    fake(tree, "python0", "echo no version is set; exit 127")
    assert "-V should print Python 3 and so on, and prints: no v" in said(
        parts, "python0"
    )
    fake(tree, "python0", "echo Python 2.7.18")
    assert "and prints: Python 2.7.18.\nGive a PYTHON" in said(parts, "python0")
    assert "build/smollm2/config.json is missing" in said(parts)
    add_model(tree)
    fake(tree, "git", "echo ' M model.py'")
    assert " M model.py\nCommit them" in said(parts)
    (parts / "old").touch()
    assert f"{parts} is not empty" in said(parts)
    assert [path.name for path in parts.iterdir()] == ["old"]


def test_packing_takes_python_from_where_the_user_stands(tree, tmp_path):
    add_model(tree)
    fake(tree, "git", "")
    fake(tree, "python0", f'{VERSION}; echo "asked for $*"; exit 3')
    done = run(tree, "pack_gpu.sh", "parts", "bin/python0", cwd=tree)
    assert (done.returncode, done.stdout[:20]) == (3, "asked for -m venv /t"[:20])
    outside = run(tree, "pack_gpu.sh", "parts", "a tree/bin/python0", cwd=tmp_path)
    assert outside.returncode == 3, outside.stderr


MAKES_VENV = f"""
{VERSION}
mkdir -p "$3/bin" "$3/lib/python3.12/site-packages"
printf '#!/bin/sh\\n' >"$3/bin/pip"
printf '#!venv/python\\necho max runs\\n' >"$3/bin/max"
chmod +x "$3/bin/pip" "$3/bin/max"
"""
# The files of a commit: none but the folder that is there anyway.
ARCHIVES = """
case $1 in
archive) mkdir -p bin && tar -c bin ;;
rev-parse) echo 1234 ;;
esac
"""


@pytest.fixture
def there(tree, tmp_path):
    """Packs with Python 3.12; returns what runs a script where programs are few."""
    add_model(tree)
    fake(tree, "git", ARCHIVES)
    fake(tree, "python0", MAKES_VENV)
    parts = tmp_path / "parts"
    done = run(tree, "pack_gpu.sh", parts, "python0")
    assert done.returncode == 0, done.stderr
    assert (parts / "python-version").read_text() == "3.12\n"
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mkdir", "cat", "dirname", "xz", "tar", "chmod", "env", "sh"):
        (programs / name).symlink_to(f"/usr/bin/{name}")

    def run_there(script, *arguments, **pythons):
        """Runs a script beside Pythons, of which each prints its name."""
        for name, version in pythons.items():
            python = programs / name.replace("_", ".")
            python.write_text(
                f'#!/bin/sh\n[ "$1" = -V ] && echo Python {version} && exit\n'
                f'echo "{python.name} runs $*, and python3:"; python3 -V\n'
            )
            python.chmod(0o755)
        return subprocess.run(
            ["/bin/sh", str(script), *map(str, arguments)],
            env={"PATH": str(programs)},
            capture_output=True,
            text=True,
        )

    return parts / "unpack.sh", tmp_path / "un packed", run_there


def test_another_python_is_refused_where_it_runs(there):
    unpack, folder, run_there = there
    done = run_there(unpack, folder)
    assert done.returncode == 1
    assert "There is no python3.12 here, and python3 is not there." in done.stderr
    done = run_there(unpack, folder, python3="3.11.2")
    assert done.returncode == 1
    assert "was packed for Python 3.12." in done.stderr
    assert "and python3 is Python 3.11.2. Install python3.12, or pack" in done.stderr
    # 3.1 is not 3.12, nor the other way round.
    assert run_there(unpack, folder, python3="3.1.2").returncode == 1
    assert run_there(unpack, folder, python3="3.120.1").returncode == 1
    assert not folder.exists()
    done = run_there(unpack, folder, python3="3.12.1")
    assert done.returncode == 0, done.stderr
    done = run_there(folder / "check.sh", python3="3.13.0")
    assert "and python3 is Python 3.13.0." in done.stderr


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "3.12.1"}, "python3"),
        ({"python3": "3.13.0", "python3_12": "3.12.1"}, "python3.12"),
        # A name may be there and nothing behind it, as a version manager's.
        ({"python3": "3.12.1", "python3_12": "?"}, "python3"),
    ],
)
def test_the_python_of_the_packed_version_runs(there, pythons, chosen):
    unpack, folder, run_there = there
    assert run_there(unpack, folder, **pythons).returncode == 0
    done = run_there(folder / "check.sh", "--for", "560")
    assert done.stderr == ""
    # What starts python3 by that name, as max does, gets the same one.
    says = f"{chosen} runs scripts/check_gpu.py --for 560, and python3:\nPython 3.12.1"
    assert done.stdout.strip() == says
    (first, *_) = (folder / "site" / "bin" / "max").read_text().splitlines()
    assert first == "#!/usr/bin/env python3"
    assert os.access(folder / "site" / "bin" / "max", os.X_OK)
