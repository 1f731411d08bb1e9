"""Requests that no server should answer: each must be refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

CHAT, TEXT = "chat/completions", "completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
DEEP = 100_000


@dataclass(frozen=True)
class Malformed:
    """A request that is wrong.

    Args:
        name: What is wrong with it.
        path: The route.
        content: The body.
        headers: Beyond httpx's.
        harmless: Whether answering it is right too.
    """

    name: str
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    harmless: bool = False


def _text(**body: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "a", "max_tokens": 1} | body).encode()


def _chat(**body: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 1} | HI | body).encode()


def _says(role: Any, content: Any) -> bytes:
    return _chat(messages=[{"role": role, "content": content}])


def _tool(parameters: Any) -> bytes:
    function = {"name": "f", "strict": True, "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    return _chat(tools=tools, tool_choice="required")


def _schema(schema: Any) -> bytes:
    json_schema = {"name": "s", "schema": schema}
    form = {"type": "json_schema", "json_schema": json_schema}
    return _chat(response_format=form)


def malformed(model: str, vocab_size: int, max_length: int) -> list[Malformed]:
    """Returns the requests for a server of ``model``."""
    deep = b"[" * DEEP + b"]" * DEEP
    wrong: list[tuple[str, str, bytes]] = [
        ("no body", CHAT, b""),
        ("truncated JSON", CHAT, _chat()[:-9]),
        ("no JSON", CHAT, b"model=m&prompt=a"),
        ("invalid UTF-8", CHAT, _chat().replace(b"Hi", b"\xff\xfe\xc3")),
        ("a list", CHAT, b"[]"),
        ("null", TEXT, b"null"),
        ("nesting without end", CHAT, deep),
        ("nesting in a text request", TEXT, deep),
        ("unclosed nesting", CHAT, deep[:DEEP]),
        ("nested metadata", CHAT, _chat(metadata=0)[:-2] + deep + b"}"),
        ("no messages", CHAT, _chat(messages=[])),
        ("messages of a wrong type", CHAT, _chat(messages="Hi")),
        ("a message of a wrong type", CHAT, _chat(messages=[7])),
        ("content of a wrong type", CHAT, _says("user", {"a": 1})),
        ("an unknown role", CHAT, _says("emperor", "Hi")),
        ("a role of a wrong type", CHAT, _says([], "Hi")),
        ("a temperature of a wrong type", CHAT, _chat(temperature="hot")),
        ("a temperature of infinity", CHAT, _chat(temperature=1e400)),
        ("a negative temperature", CHAT, _chat(temperature=-1)),
        ("NaN for top_p", CHAT, _chat(top_p=float("nan"))),
        ("max_tokens of -1", CHAT, _chat(max_tokens=-1)),
        ("max_tokens of a wrong type", CHAT, _chat(max_tokens=[1])),
        ("another model", CHAT, _chat(model="another")),
        ("a model of a wrong type", CHAT, _chat(model={})),
        ("tools of a wrong type", CHAT, _chat(tools="f", tool_choice="required")),
        ("a tool without a name", CHAT, _chat(tools=[{"type": "function"}])),
        ("a call without tools", CHAT, _chat(tool_choice="required")),
        ("a schema of a wrong type", CHAT, _tool({"type": "spaceship"})),
        ("a schema that is a list", CHAT, _schema([])),
        ("a schema without an end", CHAT, _schema({"$ref": "#/$defs/missing"})),
        ("a broken pattern", CHAT, _schema({"type": "string", "pattern": "(["})),
        ("an unknown response format", CHAT, _chat(response_format={"type": "poem"})),
        ("no prompt", TEXT, _text(prompt=None)),
        ("an empty prompt", TEXT, _text(prompt="")),
        ("an empty list of prompts", TEXT, _text(prompt=[])),
        ("a prompt of a wrong type", TEXT, _text(prompt={"a": 1})),
        ("a token beyond the vocabulary", TEXT, _text(prompt=[vocab_size])),
        ("a negative token", TEXT, _text(prompt=[-1])),
        ("a prompt token of 2^63", TEXT, _text(prompt=[2**63])),
        ("a prompt token of -2^63 - 1", TEXT, _text(prompt=[-(2**63) - 1])),
        ("a token that is a fraction", TEXT, _text(prompt=[1.5])),
        ("a list of prompts, streamed", TEXT, _text(prompt=["a", "b"], stream=True)),
        ("a prompt beyond the context", TEXT, _text(prompt=[5] * (max_length + 1))),
        ("a long text", TEXT, _text(prompt="word " * 20 * max_length)),
        ("a number of 5,000 digits", TEXT, _text(top_k=1).replace(b"1}", b"1" * 5000)),
        ("logprobs of 2^70", TEXT, _text(logprobs=2**70)),
        ("a stop of a wrong type", TEXT, _text(stop={"a": 1})),
        ("a template of the client's", CHAT, _chat(chat_template_kwargs={"tools": 1})),
        ("options that are a list", CHAT, _chat(chat_template_kwargs=[1])),
    ]
    harmless: list[tuple[str, str, bytes]] = [
        ("a lone surrogate", CHAT, _says("user", "Hi").replace(b"Hi", b"\\ud800")),
        ("top_k of 2^63 - 1", TEXT, _text(top_k=2**63 - 1, temperature=1)),
        ("a seed of 2^64", TEXT, _text(seed=2**64)),
        ("a stop of nothing", TEXT, _text(stop="")),
        ("1,000 stops", TEXT, _text(stop=[f"stop {i}" for i in range(1000)])),
        ("control characters", CHAT, _says("user", "\x00\x1b[INST]\u202e")),
        ("the same key twice", TEXT, _text()[:-1] + b', "max_tokens": 1}'),
        ("unknown fields", TEXT, _text(warp=9)),
        ("many results", TEXT, _text(n=1000)),
        ("a stop token of 2^63", TEXT, _text(stop_token_ids=[2**63])),
    ]
    named = b'"model": ' + json.dumps(model).encode()
    rows = [(row, False) for row in wrong] + [(row, True) for row in harmless]
    found = []
    for (name, path, content), ok in rows:
        content = content.replace(b'"model": "m"', named)
        found.append(Malformed(name, path, content, harmless=ok))
    body = _chat().replace(b'"model": "m"', named)
    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x"):
        found.append(Malformed(kind, CHAT, body, {"Content-Type": kind}, True))
    compressed = {"Content-Encoding": "gzip"}
    found.append(Malformed("no gzip", CHAT, body, compressed, True))
    for route in ("embeddings", "decisions", "systemone", "audio/speech", "nothing"):
        found.append(Malformed(f"{route} nested", route, deep))
        found.append(Malformed(f"{route} empty", route, b"{}"))
    return found
