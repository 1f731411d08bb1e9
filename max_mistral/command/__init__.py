"""The ``max-mistral`` command: one line from a model to an answer.

It picks what ``max`` must be told, says so, and becomes ``max``.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, describe
from ..prepare.command_line import main as prepare
from ..progress import print_line
from .checkpoint import is_gguf
from .doctor import print_report
from .errors import UsageError
from .flags import Flags
from .plan import make_plan
from .program import max_program

_HELP = """\
usage: max-mistral serve MODEL [flags of max serve]
       max-mistral generate MODEL --prompt TEXT [flags of max generate]
       max-mistral prepare SOURCE DESTINATION
       max-mistral doctor [--check]

MODEL is a GGUF file; a folder in Hugging Face's format or in Mistral's own, or
with one GGUF file; or a Hub id, such as mistralai/Mistral-7B-Instruct-v0.3 or,
of GGUF files, user/repo:Q4_K_M.

serve and generate fetch and prepare the model if need be, pick --devices,
--quantization-encoding and --max-length where you do not give them, print the
max command that follows, and run it. All other flags go to max as they are:
see max serve --help and max generate --help.

  --dry-run  print the command, and do not run it
  --check    compile the CPU kernels too, and compare one with NumPy

prepare makes a folder that MAX loads out of a checkpoint that it does not, as
python -m max_mistral.prepare does. doctor prints what a bug report needs."""

_DRY_RUN = "--dry-run"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ``argv`` is that of the process by default."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(describe(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    if not arguments:
        raise UsageError(f"No subcommand.\n{_HELP}")
    subcommand, *rest = arguments
    if subcommand in ("-h", "--help"):
        print(_HELP)
    elif subcommand == "prepare":
        prepare(rest, "max-mistral prepare")
    elif rest[:1] in (["-h"], ["--help"]):
        print(_HELP)
    elif subcommand == "doctor":
        if rest not in ([], ["--check"]):
            raise UsageError(f"doctor takes --check only, not {shlex.join(rest)}.")
        print_report(check="--check" in rest)
    elif subcommand in ("serve", "generate"):
        _run_max(subcommand, rest)
    else:
        raise UsageError(
            f"{subcommand!r} is no subcommand: serve, generate, prepare and doctor are."
            f"{_hint(subcommand)}"
        )


def _hint(word: str) -> str:
    """What to say where MODEL stands in the place of a subcommand."""
    if "/" not in word and not is_gguf(Path(word)) and not Path(word).exists():
        return ""
    return f" Did you mean {shlex.join(['max-mistral', 'generate', word])}?"


def _run_max(subcommand: str, arguments: list[str]) -> None:
    dry = _DRY_RUN in arguments
    arguments = [argument for argument in arguments if argument != _DRY_RUN]
    if not arguments or arguments[0][:1] in ("", "-"):
        raise UsageError(
            f"MODEL comes first: max-mistral {subcommand} MODEL [flags of max "
            f"{subcommand}]."
        )
    program = _find_max()
    plan = make_plan(subcommand, arguments[0], Flags(tuple(arguments[1:])), _say)
    command = [program, *plan.arguments]
    _say(plan.summary)
    if dry:
        print_line(shlex.join(command))
        return
    _say(shlex.join(command))
    # MAX declares two of its flags twice, and click warns at every start.
    quiet = {"PYTHONWARNINGS": "ignore:The parameter:UserWarning"}
    # Spelt out: MAX's engine, once imported, exports variables behind Python's
    # back, one of which sends a child to the wrong installation.
    os.execve(program, command, quiet | dict(os.environ))


def _find_max() -> str:
    found = max_program()
    if found is None:
        raise UserError(
            f"There is no max command beside {sys.executable} or on PATH. Install it "
            "with: pip install 'max[serve]'"
        )
    return found


def _say(line: str) -> None:
    """To stderr: stdout is for what ``max`` prints."""
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> None:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(status)
