"""Chats through MAX's routes, against mistral-common on what the client sent."""

import copy
import json
import pickle
import shutil

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from max_mistral.chat.messages import mistral_id
from tests.routes import Routes
from workbench.tokenizers import KINDS, tokenizer_file, write_model


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    """The routes, and mistral-common's tokenizer of the same file."""
    folder = tmp_path_factory.mktemp("model") / "m"
    file = write_model(request.param, folder)
    routes = Routes(folder, max_length=512)
    return routes, MistralTokenizer.from_file(file)


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


def post(routes, body):
    return routes.post("chat/completions", **body)


def assert_same(model, body, want):
    routes, _ = model
    response = post(routes, body)
    if isinstance(want, Exception):
        assert response.status_code == 400
        assert routes.context is None
        assert "this chat cannot be encoded: " in response.json()["detail"]
    else:
        assert response.status_code == 200, response.text
        assert routes.prompt_ids == want


@pytest.mark.parametrize("chat", list(CHATS))
def test_ids_are_those_of_mistral_common(model, chat):
    routes, reference = model
    if reference.version == "v1" and "tools" in CHATS[chat]:
        refused = post(routes, CHATS[chat])
        assert refused.status_code == 400
        assert "this model's chats have no tools" in refused.text
        return
    assert_same(model, CHATS[chat], expected(reference, CHATS[chat]))


def test_some_chats_are_encoded_by_each_version(model):
    """So that the test above compares ids, not only refusals."""
    _, reference = model
    want = {chat: expected(reference, body) for chat, body in CHATS.items()}
    ids = {chat for chat, found in want.items() if isinstance(found, list)}
    assert ids >= {"one", "system", "turns", "spelt control tokens"}
    if reference.version > "v1":
        assert ids >= {"tools", "tools later", "a call"}
    if reference.version.version_num >= 3:
        assert ids >= {"two calls", "calls one by one"}


def test_an_answer_that_is_begun(model):
    body = {"messages": [HI, {"role": "assistant", "content": "Hello, I"}]}
    options = {"chat_template_kwargs": {"continue_final_message": True}}
    want = expected(model[1], body, continue_final_message=True)
    assert isinstance(want, list)
    assert_same(model, body | options, want)


@pytest.mark.parametrize("effort", ["high", "none", "low"])
def test_a_reasoning_effort(model, effort):
    body = {"messages": [HI]}
    want = expected(model[1], body, reasoning_effort=effort)
    assert isinstance(want, list) == (model[1].version == "v15" and effort != "low")
    assert_same(model, body | {"reasoning_effort": effort}, want)


def test_ids_of_other_servers_are_shortened(model):
    """A call and its result get the same id, of nine letters and digits."""
    routes, reference = model
    if reference.version == "v1":
        pytest.skip("no tools")
    foreign = "call_0123456789abcdef01234567"
    body = {
        "messages": [
            USER,
            called(WEATHER | {"id": foreign}),
            SUNNY | {"tool_call_id": foreign},
        ],
        "tools": TOOLS,
    }
    assert post(routes, body).status_code == 200
    text = routes.prompt
    number = reference.version.version_num
    ids = 0 if number in (2, 13, 15) else 2
    assert "call_0123" not in text
    short = mistral_id(foreign, {})
    assert text.replace(" ", "").count(short) == ids


def test_other_options_are_refused(model):
    refused = post(model[0], {"messages": [HI], "chat_template_kwargs": {"style": 1}})
    assert refused.status_code == 400
    assert "no option 'style'" in refused.text


def test_a_chat_beyond_the_context_is_refused(model):
    refused = post(model[0], {"messages": [HI | {"content": "word " * 600}]})
    assert refused.status_code == 400
    assert "length of 512 tokens" in refused.text


def test_half_a_character_is_replaced(model):
    """A client that cuts text may cut a surrogate pair; JSON lets it."""
    routes, reference = model
    assert post(routes, {"messages": [HI | {"content": "a\ud83d"}]}).status_code == 200
    want = expected(reference, {"messages": [HI | {"content": "a\ufffd"}]})
    assert routes.prompt_ids == want


def test_the_worker_gets_the_tokenizer(model):
    assert pickle.loads(pickle.dumps(model[0].tokenizer)).decode is not None


def prompt(routes):
    assert post(routes, {"messages": [HI]}).status_code == 200
    return routes.prompt


def test_a_template_of_the_user_comes_first(tmp_path):
    folder = tmp_path / "m"
    write_model("v3", folder)
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }} [INST] there")
    assert prompt(Routes(folder, chat_template=template)).split() == [
        *("Hi", "[INST]", "there")
    ]


@pytest.mark.parametrize("begin", ["<|im_start|>user ", "[INST] <<SYS>> be brief "])
def test_a_checkpoint_with_another_template(tmp_path, begin):
    """As many that were trained on from Mistral 7B have, with its file."""
    folder = tmp_path / "m"
    write_model("v1", folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = begin + "{{ messages[0].content }}"
    path.write_text(json.dumps(config))
    assert prompt(Routes(folder)) == begin + "Hi"


@pytest.mark.parametrize(
    ("other", "name"),
    [
        # Of another vocabulary; of a later version than the name says; torn.
        ("v3 tekken", "tekken.json"),
        ("v3", "tokenizer.model"),
        (None, "tokenizer.model.v3"),
    ],
)
def test_a_file_that_is_not_of_the_tokenizer(tmp_path, caplog, other, name):
    folder = tmp_path / "m"
    write_model("v3", folder).unlink()
    if other is None:
        (folder / name).write_bytes(b"\n\x03torn")
    else:
        shutil.copy(tokenizer_file(other), folder / name)
    caplog.set_level("WARNING", logger="max.pipelines")
    routes = Routes(folder)
    assert routes.tokenizer._chat is None
    assert "chats are encoded with the chat template" in caplog.text
    assert "[INST]" in prompt(routes)
