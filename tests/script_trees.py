"""A copy of ``scripts``, in which a test may put programs in others' places."""

import os
import shutil
import subprocess

import pytest

from workbench.demo import ROOT


@pytest.fixture(name="tree")
def copied_tree(tmp_path):
    """A copy of the scripts in a folder with a space in its name."""
    tree = tmp_path / "a tree"
    shutil.copytree(ROOT / "scripts", tree / "scripts")
    (tree / "bin").mkdir()
    return tree


def fake(tree, name, code):
    program = tree / "bin" / name
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)


def run(tree, script, *arguments, cwd=None):
    return subprocess.run(
        [str(tree / "scripts" / script), *map(str, arguments)],
        cwd=cwd or tree,
        env=dict(os.environ) | {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
