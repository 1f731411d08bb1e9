"""Three kinds of request, by how much of the answer stands in the prompt.

- ``edit``: a function of Python's own library, to be written again with an
  argument renamed.
- ``document``: a question on a text, answered with sentences of it.
- ``chat``: an open question.

For each but the last there is what a good model would answer.
"""

from __future__ import annotations

import argparse
import calendar
import configparser
import difflib
import email.utils
import fnmatch
import heapq
import inspect
import ipaddress
import json.decoder
import mimetypes
import pprint
import random
import re
import shlex
import shutil
import statistics
import string
import tarfile
import textwrap
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COUNT = 8
"""Requests of each kind."""

KINDS = ("edit", "document", "chat")


@dataclass(frozen=True)
class Text:
    """A request and an answer to it."""

    prompt: str
    answer: str


def texts(kind: str) -> list[Text]:
    """Returns the requests of a kind, ``COUNT`` of them."""
    made = {"edit": _edits, "document": _documents, "chat": _chats}[kind]()
    return [text for text, _ in zip(made, range(COUNT), strict=False)]


# A function, and an argument or variable of it with a better name.
_RENAMED: list[tuple[Callable[..., object], str, str]] = [
    (shutil.copyfileobj, "fsrc", "source"),
    (heapq.nsmallest, "n", "count"),
    (textwrap.indent, "prefix", "margin"),
    (shlex.quote, "s", "text"),
    (fnmatch.filter, "names", "paths"),
    (statistics.median_grouped, "data", "values"),
    (heapq.merge, "iterables", "streams"),
    (inspect.cleandoc, "doc", "text"),
]


def _edits() -> Iterator[Text]:
    for function, old, new in _RENAMED:
        source = inspect.getsource(function)
        mended = re.sub(rf"\b{old}\b", new, source)
        yield Text(
            f"Rename `{old}` to `{new}` in this function. Answer with the whole "
            f"function.\n\n```python\n{source}```",
            f"```python\n{mended}```",
        )


_DOCUMENT = """\
The lighthouse on Carrick Point was built between 1868 and 1871 from granite that \
was quarried on the mainland and brought across the sound in barges. Its tower is 31 \
metres high and has 162 steps. The first keeper was Margaret Doyle, who held the \
post for 22 years and kept a diary of the weather that is still used by \
meteorologists today.

The lamp burned paraffin until 1926, when it was replaced by an electric light of \
one million candles that can be seen for 24 nautical miles. During the war of 1939 \
to 1945 the light was shown only when a convoy had asked for it, and two of the \
keepers were killed when a mine drifted ashore in the winter of 1941.

In 1987 the station was automated and the last keepers left the island. The \
cottages stood empty until 2004, when a trust of local people bought them for \
the sum of 90,000 pounds and turned them into a hostel for walkers and bird \
watchers. Every spring more than 40,000 pairs of puffins nest in the turf around \
the tower, and visitors are asked to stay on the marked paths from April to July.

A boat leaves the harbour of Kilmore at nine in the morning and returns at five in \
the afternoon, except when the wind is stronger than force six. The crossing takes \
50 minutes and costs 18 pounds. Food is not sold on the island, but there is \
drinking water from a well that the keepers dug in 1874."""

# A question, and the sentences, from and to, that answer it.
_QUESTIONS = [
    ("When was the lighthouse built, and how high is it?", 0, 2),
    ("Who was the first keeper?", 2, 3),
    ("What happened to the lamp in 1926?", 3, 4),
    ("What happened there during the war?", 4, 5),
    ("What became of the station after 1987?", 5, 7),
    ("Why must visitors stay on the paths?", 7, 8),
    ("How does one get to the island?", 8, 10),
    ("Can one eat and drink there?", 10, 11),
]


def _documents() -> Iterator[Text]:
    sentences = re.split(r"(?<=\.)\s+", _DOCUMENT)
    for i, (question, begin, end) in enumerate(_QUESTIONS):
        quoted = " ".join(sentences[begin:end])
        yield Text(
            f"{_DOCUMENT}\n\nAnswer from the text above, and quote it: {question}",
            f'{_OPENINGS[i]} "{quoted}" {_CLOSINGS[i]}',
        )


_OPENINGS = [
    "The first paragraph gives both the dates and the measure:",
    "We are told about her near the beginning:",
    "The answer is in the second paragraph, where we read this:",
    "Those years were hard for the people there. In the words of the text:",
    "It was empty for a while and then found a new use:",
    "Because of the birds that breed on the ground nearby:",
    "By sea, if the weather allows it. Here are the details:",
    "Only drink, so bring your lunch with you. The last sentence says so:",
]
_CLOSINGS = [
    "So the work took about three years.",
    "Nothing more is said of her life before or after that.",
    "From then on ships saw it from much further away.",
    "The dead are not named.",
    "In other words, it is lived in again, if only by guests.",
    "The rule holds for a third of the year.",
    "Ask again in the morning if a storm is forecast.",
    "How deep it is we do not learn.",
]

# Questions that have no text to repeat. A good model's answers are not at hand.
_OPEN = [
    "What makes a good story?",
    "Why do people travel?",
    "How would you explain gravity to a child?",
    "What should I cook for friends who visit on a cold evening?",
    "Is it better to live in a city or in the country?",
    "Tell me about an invention that changed how we live.",
    "What can one learn from growing vegetables?",
    "Write a short letter to an old teacher.",
]


def _chats() -> Iterator[Text]:
    for question in _OPEN:
        yield Text(question, "")


def functions(count: int) -> list[str]:
    """Returns the sources of so many functions of Python's own library."""
    modules = [argparse, calendar, configparser, difflib, email.utils, fnmatch]
    modules += [heapq, inspect, ipaddress, json.decoder, mimetypes, pprint, random]
    modules += [shlex, shutil, statistics, string, tarfile, textwrap, tokenize, zipfile]
    found: dict[str, None] = {}
    for module in modules:
        for owner in (module, *vars(module).values()):
            if owner is not module and not inspect.isclass(owner):
                continue
            for value in vars(owner).values():
                if inspect.isfunction(value) and value.__module__ == module.__name__:
                    source = textwrap.dedent(inspect.getsource(value))
                    if 200 < len(source) < 1500:
                        found[source] = None
    assert len(found) >= count, len(found)
    return list(found)[:count]
