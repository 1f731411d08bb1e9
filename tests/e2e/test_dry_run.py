"""A few steps of ``scripts/check_gpu.py --dry-run``, as they are run.

``tests/unit/test_dry_run.py`` says what becomes of each.
"""

import json

from tests.e2e.conftest import run_python

# Of each kind one, but not those that compile for long: what MAX runs on a CPU, what is
# traced for a GPU that is not there, a benchmark, and what is not installed.
WANTED = {
    "parity-gqa": "yes",
    "quantized-gptq": "left out",
    "weights": "yes",
    "speed-vLLM": "left out",
}


def test_some_steps(tmp_path):
    steps = ["--steps", *WANTED, "--out", tmp_path]
    done = run_python("scripts/check_gpu.py", "--dry-run", *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "dry" / "report.json").read_text())
    found = {name: result["verdict"] for name, result in report["steps"].items()}
    assert found == WANTED
    outputs = {name: result["output"] for name, result in report["steps"].items()}
    # Its body has run to the end.
    assert "NumPy's ran, of a traced graph" in outputs["quantized-gptq"]
    assert " passed" in outputs["parity-gqa"]
    assert "skipped" not in outputs["parity-gqa"]
    assert "no vllm here" in outputs["speed-vLLM"]
    model = tmp_path / "dry" / "model"
    assert json.loads((model / "config.json").read_text())["hidden_size"] == 64
