"""What we rely on in MAX and others beyond their documented interface.

A seam is checked by a function in ``tests/contract`` and is a row of the table in
CONTRIBUTING.md, which this module writes::

    python -m tests.seams
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import max_mistral

SOURCES = Path(max_mistral.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
# What Python itself puts into classes, and its ``os._exit``.
_PYTHON = ("_abc_impl", "_is_protocol", "_is_runtime_protocol", "_exit")
_BEGIN, _END = "<!-- seams -->", "<!-- end of seams -->"


@dataclass(frozen=True)
class Seam:
    """One thing that another package may move."""

    what: str
    """What must stay, with its names in backquotes."""
    names: tuple[str, ...]
    """Words by which our files speak of it."""
    mend: str
    """What to do when it has moved."""
    check: Callable[[], None]
    """Raises anything if it has."""

    @property
    def files(self) -> list[str]:
        """Our files that speak of it."""
        words = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, self.names))})(?!\w)")
        return [name for name, text in sources().items() if words.search(text)]


SEAMS: dict[str, Seam] = {}


def seam(what: str, names: str, mend: str) -> Callable[[Callable[[], None]], None]:
    """Registers the decorated check as a seam under its name."""

    def register(check: Callable[[], None]) -> None:
        SEAMS[check.__name__] = Seam(what, tuple(names.split()), mend, check)

    return register


@cache
def sources() -> dict[str, str]:
    """Returns the text of our modules by their path in ``max_mistral/``."""
    paths = sorted(SOURCES.rglob("*.py"))
    return {str(path.relative_to(SOURCES)): path.read_text() for path in paths}


def find(path: str) -> Any:
    """Returns what ``module:name.of.attribute`` names."""
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        found = getattr(found, part)
    return found


def takes(path: str, positional: int, keywords: str = "") -> None:
    """Asserts that a callable can be called with so many arguments, and these."""
    signature = inspect.signature(find(path))
    try:
        signature.bind(*range(positional), **dict.fromkeys(keywords.split()))
    except TypeError as error:
        raise AssertionError(f"{path}{signature}: {error}") from error


def has(path: str, names: str) -> None:
    """Asserts that a class or module has these attributes, set in a method or not."""
    found = find(path)
    text = inspect.getsource(found)
    gone = [
        name
        for name in names.split()
        if not hasattr(found, name) and not re.search(rf"\bself\.{name}\b", text)
    ]
    assert not gone, f"{path} has no {', '.join(gone)}"


def says(path: str, *patterns: str) -> None:
    """Asserts that the source of something matches each regular expression."""
    text = inspect.getsource(find(path))
    for pattern in patterns:
        assert re.search(pattern, text), f"{path} has nothing like {pattern!r}"


def foreign_privates() -> dict[str, set[str]]:
    """Returns the private names of others that our code uses, and in which files.

    Those that it imports, passes as keywords, or reads of what is not its own; and
    those of a base class of another's that a class of ours calls, sets or overrides,
    knowingly or not.
    """
    found: dict[str, set[str]] = {}
    trees = {name: ast.parse(text) for name, text in sources().items()}
    own = {name for tree in trees.values() for name in _defined(tree)}
    for name, tree in trees.items():
        for private in _used(tree):
            if private not in own:
                found.setdefault(private, set()).add(name)
    for cls in _our_classes():
        name = cls.__module__.removeprefix("max_mistral").strip(".").replace(".", "/")
        mine = set(_private_names(cls))
        for base in cls.__mro__:
            if not base.__module__.startswith(("max.", "transformers.")):
                continue
            for private in mine & set(_private_names(base)):
                found.setdefault(private, set()).add(name + ".py")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and name[1:2] not in ("", "_") and name not in _PYTHON


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif _of_self(node) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _of_self(node: ast.AST) -> bool:
    owner = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def _used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            module = (node.module or "").split(".")
            yield from filter(_is_private, [*module, *(a.name for a in node.names)])
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.keyword) and _is_private(node.arg or ""):
            yield node.arg or ""


def _our_classes() -> Iterator[type]:
    for info in pkgutil.walk_packages([str(SOURCES)], "max_mistral."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == info.name:
                yield cls


@cache
def _private_names(cls: type) -> frozenset[str]:
    """The private names in the body of a class: members, and attributes of self."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # made at run time
        return frozenset(filter(_is_private, vars(cls)))
    of_self = {node.attr for node in ast.walk(tree) if _of_self(node)}
    return frozenset(filter(_is_private, of_self | set(vars(cls))))


def table() -> str:
    """Returns the table of seams as Markdown."""
    rows = ["| what must stay | our files | when it has moved |", "|---|---|---|"]
    for each in SEAMS.values():
        files = ", ".join(f"`{name}`" for name in each.files)
        rows.append(f"| {each.what} | {files} | {each.mend} |")
    return "\n".join(rows)


def contributing(text: str) -> str:
    """Returns the text of CONTRIBUTING.md with the table as it is now."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


if __name__ == "__main__":
    # Under its own name, which the seams register with.
    ours = importlib.import_module("tests.seams")
    importlib.import_module("tests.contract").load()
    CONTRIBUTING.write_text(ours.contributing(CONTRIBUTING.read_text()))
