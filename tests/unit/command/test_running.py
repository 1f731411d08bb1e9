"""How the max-mistral command becomes max."""

import contextlib
import importlib
import os
import shlex
import subprocess
import sys
import tomllib

import pytest

from max_mistral import command
from max_mistral.errors import UserError
from workbench.demo import ROOT


def test_a_dry_run_prints_the_command_only(run, gguf, capsys):
    command.main(["serve", str(gguf), "--dry-run", "--port", "1"])
    printed = shlex.split(capsys.readouterr().out)
    _, found, _ = run("serve", gguf, "--port", "1")
    assert printed == found


def test_a_path_that_is_no_text(gguf, tmp_path, capfdbinary):
    odd = gguf.rename(os.fsdecode(os.fsencode(gguf.with_name("caf")) + b"\xe9.gguf"))
    for arguments in (
        ["serve", str(odd), "--dry-run"],
        ["prepare", str(odd), str(tmp_path / "new")],
    ):
        # As Python has it: pytest's own stdout takes all.
        with (
            open(1, "w", encoding="utf-8", errors="strict", closefd=False) as stdout,
            contextlib.redirect_stdout(stdout),
        ):
            command.main(arguments)
        assert os.fsencode(odd) in capfdbinary.readouterr().out


def test_it_becomes_max(tmp_path, folder):
    """A process of its own, with another program in the place of max."""
    stub = tmp_path / "bin" / "max"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONWARNINGS" "$@"\nexit 7\n')
    stub.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(stub.with_name('python'))!r}\n"
        "from max_mistral.command import main; main()"
    )
    arguments = ["generate", str(folder), "--devices", "cpu", "--prompt", "a 'b'\n$c"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=dict(os.environ) | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 7, result.stderr
    assert result.stdout.startswith("ignore\ngenerate\n--custom-architectures\n")
    assert result.stdout.endswith("--prompt\na 'b'\n$c\n")


def test_the_installed_script_is_this_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["max-mistral"].split(":")
    assert getattr(importlib.import_module(module), name) is command.main


def test_max_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="no max command"):
        command._find_max()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "max").touch(mode=0o755)
    assert command._find_max() == str(tmp_path / "bin" / "max")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: max-mistral serve"),
        (["server"], "'server' is no subcommand"),
        (["a b.gguf"], "Did you mean max-mistral generate 'a b.gguf'?"),
        (["user/repo"], "Did you mean max-mistral generate user/repo?"),
        (["serve"], "MODEL comes first"),
        (["serve", "--port", "1", "model"], "MODEL comes first"),
        (["serve", ""], "MODEL comes first"),
        (["doctor", "--verbose"], "--check only"),
        (["prepare", "one"], "usage: max-mistral prepare"),
        (["prepare", "one"], "required: DESTINATION"),
    ],
)
def test_usage_errors_exit_with_2(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"], ["doctor", "-h"]])
def test_help(arguments, capsys):
    command.main(arguments)
    assert capsys.readouterr().out.startswith("usage: max-mistral serve MODEL")


def test_prepare_is_the_modules(gguf, tmp_path, capsys):
    command.main(["prepare", str(gguf), str(tmp_path / "new")])
    assert (tmp_path / "new" / "config.json").exists()
    assert "--weight-path" in capsys.readouterr().out
