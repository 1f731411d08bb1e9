"""What the clients ask, and what an answer says."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from tests.soak.checks import StreamError
from tests.soak.malformed import CHAT, TEXT
from workbench.checkpoints import BASE

NUMBER = {"enum": [1, 2]}
CALL = {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]}
CALL["additionalProperties"] = False
FUNCTION = {"name": "f", "strict": True, "parameters": CALL}
TOOLS = [{"type": "function", "function": FUNCTION}]
NAMED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": CALL}}


class Question(NamedTuple):
    """A request whose greedy answer is always the same."""

    name: str
    path: str
    body: dict[str, Any]


class Answer(NamedTuple):
    """What an answer says, streamed or not; ids of calls are drawn at random."""

    text: str
    calls: tuple[tuple[str, str], ...]
    finish: str | None


def questions(max_length: int) -> list[Question]:
    """Returns short and long ones of each route, up to the whole context."""

    def chat(name: str, text: str, **body: Any) -> Question:
        messages = [{"role": "user", "content": text}]
        return Question(name, CHAT, {"messages": messages} | body)

    def text(name: str, prompt: Any, **body: Any) -> Question:
        return Question(name, TEXT, {"prompt": prompt} | body)

    rng = random.Random(7)
    found = []
    for i, length in enumerate((1, 5, 30, max_length // 3, max_length - 40)):
        words = "".join(rng.choices("abcdefghij ", k=length))
        ids = [rng.randrange(10, BASE["vocab_size"]) for _ in range(length)]
        some = rng.randrange(2, 16)
        found.append(chat(f"chat of {length}", words, max_tokens=some))
        found.append(text(f"text of {length}", words, max_tokens=some + i))
        found.append(text(f"ids of {length}", ids, max_tokens=20 - some))
        # The same beginning as another, which may be in the prefix cache.
        found.append(text(f"prefix of {length}", [*ids, 9], max_tokens=some))
    found.append(text("a long answer", "abc", max_tokens=max_length * 2 // 3))
    found.append(text("another long answer", [7, 8], max_tokens=max_length // 2))
    found.append(text("a stop", "stop", max_tokens=40, stop=["a", "<filler_290>"]))
    found.append(text("an echo", "echo this", max_tokens=5, echo=True, logprobs=1))
    found.append(text("probabilities", "likely", max_tokens=5, logprobs=2))
    tools = {"tools": TOOLS, "max_tokens": 60, "parallel_tool_calls": False}
    found.append(chat("a required call", "x", **tools, tool_choice="required"))
    found.append(chat("a named call", "y", **tools, tool_choice=NAMED))
    found.append(chat("a schema", "z", max_tokens=40, response_format=SCHEMA))
    form = {"type": "json_object"}
    found.append(chat("an object", "w", max_tokens=30, response_format=form))
    return found


def whole(body: dict[str, Any]) -> Answer:
    """Reads an answer that is not streamed."""
    (choice,) = body["choices"]
    message = choice.get("message") or {"content": choice["text"]}
    calls = [c["function"] for c in message.get("tool_calls") or []]
    said = tuple((call["name"], call["arguments"]) for call in calls)
    return Answer(message["content"] or "", said, choice["finish_reason"])


class Streamed:
    """Reads an answer line by line."""

    def __init__(self) -> None:
        self.text, self.finish, self.done = "", None, False
        self.calls: list[list[str]] = []

    def read(self, line: str) -> None:
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise StreamError(data)
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {"content": choice.get("text")}
            self.text += delta.get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
            for part in delta.get("tool_calls") or []:
                if part["index"] == len(self.calls):
                    self.calls.append(["", ""])
                function = part["function"]
                self.calls[part["index"]][0] += function.get("name") or ""
                self.calls[part["index"]][1] += function.get("arguments") or ""

    @property
    def answer(self) -> Answer:
        calls = tuple((name, arguments) for name, arguments in self.calls)
        return Answer(self.text, calls, self.finish)
