"""Chats through MAX's routes, against mistral-common on what the client sent."""

import json
import pickle
import shutil
import sys

import jsonschema
import pytest
from mistral_common.protocol.instruct import validator
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from max_mistral.chat.messages import MistralIds
from tests.chats import CHATS, HELLO, HI, SUNNY, TOOLS, USER, WEATHER, called, expected
from tests.routes import Routes
from workbench.tokenizers import KINDS, tokenizer_file, write_model


@pytest.fixture(scope="module", params=KINDS)
def model(request, real_model):
    """The routes, and mistral-common's tokenizer of the same file."""
    file = real_model(request.param)
    routes = Routes(file.parent, max_length=512)
    return routes, MistralTokenizer.from_file(file)


def post(routes, body):
    return routes.post("chat/completions", **body)


def unchecked(reference, body):
    """mistral-common's ids where a tool's schema may be any, as with us."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validator, "validate_json_schema_by_draft7", lambda value: None)
        return expected(reference, body)


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


# What is left of chats where nothing has a place for thinking.
THOUGHTLESS = {
    "thinking that goes on": [HI, USER],
    "thoughts": [HI, HELLO, USER],
}


@pytest.mark.parametrize("chat", list(CHATS))
def test_ids_are_those_of_mistral_common(model, chat):
    routes, reference = model
    if reference.version == "v1" and "tools" in CHATS[chat]:
        refused = post(routes, CHATS[chat])
        assert refused.status_code == 400
        assert "this model's chats have no tools; leave tools out" in refused.text
        return
    body = CHATS[chat]
    if chat == "a call in text" and reference.version.version_num < 7:
        body = CHATS["a call"]  # see test_a_text_beside_calls
    if chat in THOUGHTLESS and reference.version.version_num < 13:
        body = {"messages": THOUGHTLESS[chat]}  # see test_thinking_of_another_model
    assert_same(model, CHATS[chat], unchecked(reference, body))


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
    if reference.version.version_num == 13:
        assert ids >= {"thinking", "thinking that goes on"}


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
    if effort == "none" and model[1].version != "v15":
        want = expected(model[1], body)
    assert_same(model, body | {"reasoning_effort": effort}, want)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled"}}, "high"),
        ({"reasoning": {"enabled": True}}, "high"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"reasoning": {"enabled": False, "effort": "high"}}, "none"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "high"),
    ],
)
def test_thinking_turned_on_or_off_is_an_effort(model, fields, effort):
    body = {"messages": [HI]}
    if model[1].version == "v15":
        assert_same(
            model, body | fields, expected(model[1], body, reasoning_effort=effort)
        )
    elif effort == "none" and "effort" not in fields.get("reasoning", {}):
        assert_same(model, body | fields, expected(model[1], body))
    else:
        refused = post(model[0], body | fields)
        assert refused.status_code == 400, refused.text
        assert "thinking" in refused.text or "reasoning" in refused.text


@pytest.mark.parametrize("content", [" ", "I will look."])
def test_a_text_beside_calls(model, content):
    """Before v7 there is no place for it; an answer may have had both all the same."""
    if model[1].version == "v1":
        pytest.skip("no tools")
    body = {"messages": [USER, called(WEATHER), SUNNY], "tools": TOOLS}
    without = expected(model[1], body)
    body["messages"][1] = called(WEATHER) | {"content": content}
    want = expected(model[1], body)
    if model[1].version.version_num < 7:
        assert isinstance(want, Exception)
        want = without
    assert isinstance(want, list)
    assert_same(model, body, want)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_that_is_empty_is_none(model, field):
    answer = {"role": "assistant", "content": "Hello."}
    want = expected(model[1], {"messages": [HI, answer, HI]})
    assert isinstance(want, list)
    assert_same(model, {"messages": [HI, answer | {field: ""}, HI]}, want)


@pytest.mark.parametrize("kind", ["reasoning", "reasoning_content", "part"])
def test_thinking_of_another_model(model, kind):
    """Which the chat was with before: left out where there is no place for it."""
    _, reference = model
    part = {"type": "thinking", "thinking": "Greet back."}
    of_parts = {"content": [part, {"type": "text", "text": HELLO["content"]}]}
    answer = HELLO | (of_parts if kind == "part" else {kind: "Greet back."})
    has_place = reference.version.version_num >= 13
    want = expected(reference, {"messages": [HI, answer if has_place else HELLO, USER]})
    assert isinstance(want, list)
    assert_same(model, {"messages": [HI, answer, USER]}, want)


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]])
def test_an_answer_without_text_is_left_out(model, content):
    """As it comes of a stop string at once; mistral-common refuses it."""
    empty = {"role": "assistant", "content": content}
    assert isinstance(expected(model[1], {"messages": [HI, empty, USER]}), Exception)
    want = expected(model[1], {"messages": [HI, USER]})
    assert isinstance(want, list)
    assert_same(model, {"messages": [HI, empty, USER]}, want)
    # At the end it is what it is.
    assert post(model[0], {"messages": [HI, empty]}).status_code == 400


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
    short = MistralIds().of(foreign)
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


@pytest.mark.parametrize(
    "schema",
    [
        {"type": [*range(40), "a"]},
        {"dependencies": {"x": [*range(40), "a"]}},
        {"type": "string", "pattern": r"^\p{L}+$"},  # as JavaScript writes it
    ],
)
def test_a_schema_is_only_text_of_the_prompt(model, schema, monkeypatch):
    """jsonschema would compare a list's items each with each, in hours."""
    _, reference = model
    if reference.version == "v1":
        pytest.skip("no tools")
    compared = []
    monkeypatch.setattr(jsonschema._utils, "equal", lambda *two: compared.append(two))
    function = {"name": "add", "parameters": schema}
    body = {"messages": [HI], "tools": [{"type": "function", "function": function}]}
    assert_same(model, body, unchecked(reference, body))
    assert not compared


def test_a_name_is_checked_all_the_same(model):
    function = {"name": "f" * 65, "parameters": {}}
    body = {"messages": [HI], "tools": [{"type": "function", "function": function}]}
    refused = post(model[0], body)
    assert refused.status_code == 400
    if model[1].version != "v1":
        assert "with a maximum length of 64" in refused.json()["detail"]


@pytest.fixture(scope="module", params=["v2", "v3"])
def long_model(request, tmp_path_factory):
    """The routes and the tokenizer of a model with room for some pages."""
    file = write_model(request.param, tmp_path_factory.mktemp("long") / "m")
    path = file.parent / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": 8192}
    path.write_text(json.dumps(config))
    return Routes(file.parent, max_length=8192), MistralTokenizer.from_file(file)


DIGITS = "1" * 5000
LEVELS = sys.getrecursionlimit() - 60


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        (DIGITS, json.dumps(DIGITS)),
        ([{"type": "text", "text": DIGITS}], json.dumps(DIGITS)),
        ("[" * 3000, json.dumps("[" * 3000)),
        # Too near the limit for calls that are nested deeper than ours.
        pytest.param(
            "[" * LEVELS + "]" * LEVELS,
            json.dumps("[" * LEVELS + "]" * LEVELS),
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 12), reason="C may recurse further there"
            ),
        ),
        # Half of a surrogate pair, as JavaScript writes it into JSON.
        ('{"a": "\\ud83d"}', '{"a": "\ufffd"}'),
        ("", ""),
        ("1, 2", "1, 2"),
    ],
    ids=["digits", "parts", "open", "levels", "half", "empty", "text"],
)
def test_a_result_that_cannot_be_read_as_json_is_a_string(long_model, content, meant):
    """Else the chat could not go on: clients send all of it each time."""
    begun = [USER, called(WEATHER)]
    body = {"messages": [*begun, SUNNY | {"content": meant}]}
    want = expected(long_model[1], body)
    assert isinstance(want, list), want
    body = {"messages": [*begun, SUNNY | {"content": content}]}
    assert_same(long_model, body, want)


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


def test_a_tekken_with_another_pattern(tmp_path, caplog):
    """Its expression would run on all that clients send."""
    folder = tmp_path / "m"
    path = write_model("v7 tekken", folder)
    file = json.loads(path.read_text())
    file["config"]["pattern"] = r"(?:a|(?=a)a)*b|."
    path.write_text(json.dumps(file))
    caplog.set_level("WARNING", logger="max.pipelines")
    routes = Routes(folder)
    assert routes.tokenizer._chat is None
    assert "expected the one of Mistral's own files" in caplog.text
    assert "[INST]" in prompt(routes)
