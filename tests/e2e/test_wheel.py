"""The wheel, in a fresh virtual environment, away from the checkout."""

import subprocess
import sys
import zipfile

import pytest

from tests.e2e.conftest import DEMO_FLAGS, ROOT, environment, run_python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run_python("-m", "build", "--outdir", folder, ROOT).check_returncode()
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "max_mistral/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"max_mistral"}
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "max_mistral").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here == {name for name in names if name.startswith("max_mistral/")}


def test_it_answers_from_a_fresh_environment(wheel, demo_model, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, env=environment())
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True, env=environment())
    subprocess.run([*pip, wheel], check=True, env=environment())
    result = subprocess.run(
        [venv / "bin" / "max", "generate", *DEMO_FLAGS, "--model", demo_model]
        + ["--temperature", "0", "--max-new-tokens", "20"]
        + ["--prompt", "What is the capital of France? Answer in one sentence."],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
