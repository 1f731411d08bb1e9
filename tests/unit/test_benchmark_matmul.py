"""``benchmarks/matmul.py`` without a GPU: what failed, and its table."""

import json
import sys

import pytest

from benchmarks import matmul, matmul_report
from max_mistral.gpu_matmul.products import Product
from max_mistral.gpu_matmul.self_check import Wrong
from workbench.verdict import LEFT_OUT


@pytest.mark.parametrize("failing", [[], ["cublas"], ["ceilings", "own"]])
def test_a_matmul_that_failed_is_the_exit_status(
    monkeypatch, capsys, tmp_path, failing
):
    def in_process(name, *_, module, shown):
        if name in failing:
            raise SystemExit(f"{name} failed")
        if name == "ceilings":
            return {"bytes/s": 1e12, "operations/s": 1e15}
        seconds = {str(rows): 1e-3 for rows in matmul.ROWS}
        return {"wrong": [], "says": [], "check_seconds": 1.0, "seconds": seconds}

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


EVERY = [Product(100, 50), Product(50, 100)]
FP8 = [Product(100, 50, fp8=True), Product(50, 100, fp8=True)]
CEILINGS = {"bytes/s": 2e12, "operations/s": 2e12}
SECONDS = {str(rows): 2e-8 * rows for rows in matmul.ROWS}
OWN = {"wrong": ["8 of the rows"], "says": ["gets 8 of the rows wrong"]}
OWN |= {"check_seconds": 3.0, "seconds": SECONDS}


def test_the_table_of_matmuls():
    found = {"ceilings": CEILINGS, "own": OWN, "fp8": OWN}
    text = matmul_report.report(found, {"own": EVERY, "fp8": FP8})
    # 20,000 bytes and operations in 20 ns.
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 ")]
    cells = row.strip("| ").split(" | ")
    assert cells == ["1", "0.000", "50%", "50%", "0.000", "25%", "50%"]
    assert "own (3 s): gets 8 of the rows wrong" in text


def test_what_was_not_asked_is_not_in_the_table():
    text = matmul_report.report({"ceilings": CEILINGS, "own": OWN}, {"own": EVERY})
    assert "| rows | own, ms | of memory | of peak |" in text
    checked = {"wrong": [], "says": [], "check_seconds": 3.0}
    assert matmul_report.report({"own": checked}, {"own": EVERY}) == "own (3 s): right"


def test_the_answer_in_a_line():
    def answer(**found):
        return matmul_report.answer(found, {"own": EVERY, "cublas": EVERY})

    assert answer(ceilings=CEILINGS, own=OWN) == (
        "own: wrong (gets 8 of the rows wrong), 1 row 0.000 ms (50% of memory, "
        "50% of peak), 4096 rows 0.082 ms (0% of memory, 50% of peak)"
    )
    right = {"wrong": [], "says": [], "check_seconds": 3.0}
    failed = {"failed": "cublas failed:\nTraceback\nMemoryError: no memory\n"}
    assert answer(own=right, cublas=failed) == "own: right; MemoryError: no memory"
    assert answer(ceilings=CEILINGS).startswith("A copy moves 2.00 TB/s")
    assert answer(ceilings={"failed": "ceilings is left out"}) == "ceilings is left out"


def test_what_is_wrong_is_short(monkeypatch, capsys):
    """As often as not a matmul is wrong for most numbers of rows."""
    products = [Product(100, 50), Product(50, 100)]
    wrong = [Wrong(product, rows, 8) for product in products for rows in range(40)]
    monkeypatch.setattr(matmul, "wrong_products", lambda *_: wrong)
    found = matmul.check("own", None, None, products)
    assert len(found["wrong"]) == 80
    assert found["says"] == [
        f"gets 8 of the rows for (M, K, N) = (0, {k}, {n}) wrong, and 39 more like it"
        for n, k in ((100, 50), (50, 100))
    ]
    # At once, for who ends the process while it measures times.
    assert capsys.readouterr().err == f"own: {'; '.join(found['says'])}\n"


@pytest.fixture
def ask(monkeypatch, tmp_path, capsys):
    """Runs the command line; returns what was measured, written and said."""

    def run(*flags, found=None):
        asked = []

        def in_process(name, *flags, module, shown):
            asked.append((name, flags[flags.index("--parts") + 1 :]))
            return (found or {}).get(
                name, {"wrong": [], "says": [], "check_seconds": 1}
            )

        monkeypatch.setattr(matmul, "in_process", in_process)
        path = tmp_path / "found.json"
        words = ["matmul", *map(str, flags), "--json", str(path)]
        monkeypatch.setattr(sys, "argv", words)
        status = 0
        try:
            matmul.main()
        except SystemExit as end:
            status = end.code
        return status, asked, json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_the_self_check_alone_needs_no_ceilings(ask):
    status, asked, found, printed = ask("--matmuls", "own", "--parts", "check")
    assert (status, asked, list(found)) == (0, [("own", ("check",))], ["own"])
    assert printed.splitlines()[-1] == "VERDICT: own: right"


def test_ceilings_are_measured_once(ask, tmp_path):
    measured = {"ceilings": CEILINGS, "own": {"seconds": SECONDS}}
    status, asked, found, printed = ask("--matmuls", found=measured)
    assert (status, found) == (0, {"ceilings": CEILINGS})
    assert [name for name, _ in asked] == ["ceilings"]
    assert "VERDICT: A copy moves 2.00 TB/s" in printed
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps(found))
    flags = ["--matmuls", "own", "--parts", "times", "--ceilings", path]
    status, asked, found, printed = ask(*flags, found=measured)
    assert (status, asked) == (0, [("own", ("times",))])
    assert found["ceilings"] == CEILINGS
    # Without them there are the times, and it is no failure.
    path.unlink()
    status, _, found, printed = ask(*flags, found=measured)
    assert status == 0
    assert f"--matmuls --json {path}" in found["ceilings"]["failed"]
    assert "VERDICT: own: 1 row 0.000 ms, 4096 rows 0.082 ms" in printed


def test_nothing_that_can_run_here_is_a_status_of_its_own(ask):
    left_out = {"failed": "cublas is left out: no cuBLAS here.", "left_out": True}
    found = {"cublas": left_out}
    flags = ["--parts", "check", "--matmuls", "cublas"]
    assert ask(*flags, found=found)[0] == LEFT_OUT
    assert ask(*flags, "own", found=found)[0] == 0
    assert ask("--matmuls", found={"ceilings": left_out})[0] == LEFT_OUT
