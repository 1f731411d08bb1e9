"""``benchmarks/matmul.py`` without a GPU: what failed, and its table."""

import json
import sys

import pytest

from benchmarks import matmul
from max_mistral.gpu_matmul.products import Product


@pytest.mark.parametrize("failing", [[], ["cublas"], ["ceilings", "own"]])
def test_a_matmul_that_failed_is_the_exit_status(
    monkeypatch, capsys, tmp_path, failing
):
    def in_process(name, *_, module):
        if name in failing:
            raise SystemExit(f"{name} failed")
        if name == "ceilings":
            return {"bytes/s": 1e12, "operations/s": 1e15}
        seconds = {str(rows): 1e-3 for rows in matmul.ROWS}
        return {"wrong": [], "check_seconds": 1.0, "seconds": seconds}

    monkeypatch.setattr(matmul, "in_process", in_process)
    path = tmp_path / "matmuls.json"
    names = ["--matmuls", "own", "cublas"]
    monkeypatch.setattr(sys, "argv", ["matmul", *names, "--json", str(path)])
    if failing:
        with pytest.raises(SystemExit, match=f"Failed: {', '.join(failing)}."):
            matmul.main()
    else:
        matmul.main()
    assert set(json.loads(path.read_text())) == {"ceilings", "own", "cublas"}
    # Without the ceilings there are the times.
    assert "1.000" in capsys.readouterr().out


def test_the_table_of_matmuls():
    every = [Product(100, 50), Product(50, 100)]
    seconds = {str(rows): 2e-8 * rows for rows in matmul.ROWS}
    own = {"wrong": ["8 of the rows"], "check_seconds": 3.0, "seconds": seconds}
    ceilings = {"bytes/s": 2e12, "operations/s": 2e12}
    fp8 = [Product(100, 50, fp8=True), Product(50, 100, fp8=True)]
    found = {"ceilings": ceilings, "own": own, "fp8": own}
    text = matmul.report(found, {"own": every, "fp8": fp8})
    # 20,000 bytes and operations in 20 ns.
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 ")]
    assert row.split(" | ")[1:4] == ["0.000", "50%", "50%"]
    # Half the bytes.
    assert row.rstrip(" |").split(" | ")[-3:] == ["0.000", "25%", "50%"]
    assert "own (3 s): 8 of the rows" in text
