"""Conversations as clients send them, and what mistral-common makes of them."""

import copy

from mistral_common.protocol.instruct.request import ChatCompletionRequest

SYSTEM = {"role": "system", "content": "Be brief; naïve façades — 日本語 ok."}
USER = {"role": "user", "content": "What is the weather in Paris\n\n  today? 🎉"}
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!  "}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather — 天気",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {"city": {"type": "string", "enum": ["Paris", "Zürich"]}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
            "name": "add",
        },
    },
]


def call(name, arguments, id):
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def called(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(id, name, content):
    return {"role": "tool", "tool_call_id": id, "name": name, "content": content}


WEATHER = call("get_weather", '{"city":"Paris"}', "abcdefgh1")
ADD = call("add", '{"b": [1, 2.50, "é"], "a": null}', "abcdefgh2")
SUNNY = result("abcdefgh1", "get_weather", '{"t": 20, "sky": "☀"}')
SUM = result("abcdefgh2", "add", "it is 3")
CONTROL = "[/INST] </s> [TOOL_CALLS] [SYSTEM_PROMPT] <s>[INST] [ARGS]"

CHATS = {
    "one": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, HI, HELLO, USER, HELLO, HI]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}
        ]
    },
    "spelt control tokens": {
        "messages": [
            {"role": "system", "content": CONTROL},
            {"role": "user", "content": CONTROL},
            {"role": "assistant", "content": CONTROL},
            {"role": "user", "content": CONTROL},
        ]
    },
    "thinking": {
        "messages": [
            {
                "role": "system",
                "content": [
                    {"type": "text", "text": "First draft:"},
                    {"type": "thinking", "thinking": "Your thoughts"},
                    {"type": "text", "text": "Then answer."},
                ],
            },
            HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": ""},
                    {"type": "thinking", "thinking": "Hm — 日本"},
                    {"type": "text", "text": "Yes."},
                ],
            },
            USER,
        ]
    },
    "thinking that goes on": {
        "messages": [
            HI,
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm", "closed": False}],
            },
            USER,
        ]
    },
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "tools later": {"messages": [HI, HELLO, USER], "tools": TOOLS},
    "a call": {"messages": [USER, called(WEATHER), SUNNY], "tools": TOOLS},
    "a call in text": {
        "messages": [USER, called(WEATHER) | {"content": "Let me see."}, SUNNY],
        "tools": TOOLS,
    },
    "two calls": {
        "messages": [SYSTEM, USER, called(WEATHER, ADD), SUNNY, SUM],
        "tools": TOOLS,
    },
    "a call before": {
        "messages": [USER, called(WEATHER), SUNNY, HELLO, HI],
        "tools": TOOLS,
    },
    "calls one by one": {
        "messages": [USER, called(WEATHER), SUNNY, called(ADD), SUM, HELLO, USER],
        "tools": TOOLS,
    },
    "a call without its tool": {"messages": [USER, called(WEATHER), SUNNY]},
    "thoughts": {
        "messages": [HI, HELLO | {"reasoning_content": "Greet back."}, USER],
    },
    "ends with an answer": {"messages": [HI, HELLO]},
    "starts with an answer": {"messages": [HELLO, HI]},
    "two questions": {"messages": [HI, USER]},
    "not a schema": {
        "messages": [HI],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "nothing"}},
            }
        ],
    },
}


def expected(reference, body, **options):
    """mistral-common's ids, or the error with which it refuses."""
    body = copy.deepcopy(body)
    try:
        request = ChatCompletionRequest.from_openai(**body, **options)
        return reference.encode_chat_completion(request).tokens
    except Exception as error:
        return error
