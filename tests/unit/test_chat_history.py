"""What a chat's messages may be, and what is made of them for the model."""

import json

import pytest

from max_mistral.chat.client_messages import LONGEST_ID
from max_mistral.chat.messages import MistralIds
from tests.chats import call, called, result
from tests.routes import Routes
from tests.tools import NAMED, TOOLS
from tests.vocabularies import write_vocabulary

CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_0123456789abcdef",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1}'},
        }
    ],
}
USER = {"role": "user", "content": "Q?"}
RESULT = {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "2"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tools": TOOLS, "tool_choice": NAMED | {"function": {"name": "x"}}}, "'x'"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "Two tools are named 'get_weather'"),
        ({"tool_choice": "required"}, "has no tools"),
        ({"tool_choice": NAMED}, "has no tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "use tools"),
        ({"messages": [USER, RESULT]}, "messages[1] has role 'tool' after user"),
        (
            {"messages": [USER, {"role": "assistant", "content": "A"}, RESULT]},
            "messages[2] is the result",
        ),
        ({"messages": [USER, CALLED, RESULT, RESULT]}, "messages[3] is the result"),
        ({"messages": [USER, CALLED, RESULT | {"tool_call_id": "x"}]}, "'x'"),
        ({"messages": [USER, CALLED, USER]}, "tool_call"),
        ({"messages": [RESULT, USER]}, "messages[0] has role 'tool' after nothing"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "system or user"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "A"},
                    {"role": "system", "content": "S"},
                ]
            },
            "messages[2] has role 'system' after assistant, where assistant, user or",
        ),
    ],
)
def test_bad_input_is_a_400_in_words(v13, body, says):
    response = v13.ask(**body)
    assert response.status_code == 400, response.text
    assert says in response.json()["detail"]


def test_a_system_prompt_in_between(server, version):
    """ChatML and its like have one anywhere, Mistral's chats before an answer."""
    system = {"role": "system", "content": "Be brief."}
    for before in (
        [USER, {"role": "assistant", "content": "A"}],
        [USER, CALLED, RESULT],
    ):
        messages = [*before, system, USER]
        answer = server.ask(messages=messages, tools=TOOLS)
        assert answer.status_code == (200 if version == "none" else 400), answer.text


# History.


def test_foreign_ids_become_nine_alphanumerics(v13):
    v13.answer("2.", messages=[USER, CALLED, RESULT], tools=TOOLS)
    call = v13.prompt.split("add#")[1][:9]
    assert call.isalnum()
    assert f"[TOOL_RESULTS]{call}:2" in v13.prompt
    first = v13.prompt
    # The same in the next turn, for a cached prefix.
    v13.answer("3.", messages=[USER, CALLED, RESULT, USER], tools=TOOLS)
    assert v13.prompt.startswith(first)


@pytest.mark.parametrize("call_id", ["", "\ud800", "x" * LONGEST_ID])
def test_any_id_is_shortened(v13, call_id):
    called = json.loads(json.dumps(CALLED))
    called["tool_calls"][0]["id"] = call_id
    result = RESULT | {"tool_call_id": call_id}
    v13.answer("2.", messages=[USER, called, result], tools=TOOLS)
    assert v13.prompt.split("add#")[1][:9].isalnum()


def test_ids_that_are_made_are_told_apart():
    ids = MistralIds()
    made = [ids.of(f"call_{i}") for i in range(200)]
    assert len(set(made)) == 200
    # At each of the nine places, for all of it is of a hash.
    assert all(len({each[place] for each in made}) > 20 for place in range(9))
    # A client that has one for another call gets another in its place.
    assert ids.of(made[0]) not in made


def test_an_id_of_ours_stays(v13):
    called = json.loads(
        json.dumps(CALLED).replace("call_0123456789abcdef", "aB3dE6gH9")
    )
    v13.answer("2.", messages=[USER, called, RESULT | {"tool_call_id": "aB3dE6gH9"}])
    assert "add#aB3dE6gH9" in v13.prompt


def test_tools_in_words_where_the_template_has_none(servers):
    server = servers["none"]
    system = {"role": "system", "content": "Be brief."}
    server.answer("2.", messages=[system, USER, CALLED, RESULT], tools=TOOLS)
    prompt = server.prompt
    assert prompt.startswith("<system>Be brief.\n\n")
    assert '{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "<user><tool_response>\n2\n</tool_response>" in prompt
    assert '"description": "Adds."' in prompt
    for tools in ({}, {"tools": []}):
        server.answer("2.", **tools)
        assert "tool" not in server.prompt


def test_tools_in_words_where_the_template_has_no_system_prompt(tmp_path):
    """As the first templates of 7B: turns of user and assistant, or an error."""
    server = Routes(write_vocabulary(tmp_path, "none"), max_length=8192)
    server.tokenizer.delegate.chat_template = (
        "{%- for m in messages -%}"
        "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{- raise_exception('Roles must alternate user/assistant/...') -}}"
        "{%- endif -%}"
        "<{{ m.role }}>{{ m.content }}{%- endfor -%}"
    )
    server.answer("2.", messages=[USER, CALLED, RESULT], tools=TOOLS)
    assert server.prompt.startswith("<user>You can call tools.")
    assert server.prompt.count("<user>") == 2
    assert f"</tool_call>\n\n{USER['content']}<assistant>" in server.prompt
    refused = server.chat(messages=[{"role": "system", "content": "Hm."}, USER])
    assert "Roles must alternate" in refused.json()["detail"]


def test_a_template_gets_tools_as_models_were_trained_on_them(v13):
    """The order of the keys is that of mistral-common; ``strict`` is for a grammar."""
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"strict": True, "parameters": parameters, "name": "add"}
    v13.answer("2.", tools=[{"type": "function", "function": function}])
    want = {"name": "add", "description": "", "parameters": parameters}
    tools = json.dumps([{"type": "function", "function": want}])
    assert f"[AVAILABLE_TOOLS]{tools}[/AVAILABLE_TOOLS]" in v13.prompt


def test_an_empty_list_of_tools_offers_none(servers):
    """Tags are then text, which of an offered tool would be a call."""
    text = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    for ask in (servers["none"].answer, servers["none"].streamed):
        choice = ask(text, tools=[])
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == "stop"
    servers["v13"].answer("2.", tools=[])
    assert "AVAILABLE_TOOLS" not in servers["v13"].prompt


def test_calls_in_words_stay_where_no_tools_are_given_any_more(servers):
    servers["none"].answer("2.", messages=[USER, CALLED, RESULT])
    prompt = servers["none"].prompt
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "<user><tool_response>\n2\n</tool_response>" in prompt
    assert "<tools>" not in prompt


def test_text_beside_calls_in_words_stays(servers):
    message = CALLED | {"content": "Let me see."}
    servers["none"].answer("2.", messages=[USER, message, RESULT], tools=TOOLS)
    assert "<assistant>Let me see.\n<tool_call>\n" in servers["none"].prompt


def test_results_in_words_are_one_turn(servers):
    """Some templates refuse two of the user's in a row."""
    calls = called(call("add", "{}", "call_a"), call("add", "{}", "call_b"))
    results = [result("call_a", "add", "2"), result("call_b", "add", "3")]
    servers["none"].answer("5.", messages=[USER, calls, *results], tools=TOOLS)
    prompt = servers["none"].prompt
    assert (
        "<user><tool_response>\n2\n</tool_response>\n"
        "<tool_response>\n3\n</tool_response>\n"
    ) in prompt
    assert prompt.count("<user>") == 2


def test_words_of_any_script_describe_tools_as_they_are(servers):
    function = {"name": "add", "description": "Zählt zusammen ☺"}
    tools = [{"type": "function", "function": function}]
    servers["none"].answer("2.", tools=tools)
    assert '"description": "Zählt zusammen ☺"' in servers["none"].prompt


@pytest.mark.parametrize(
    "body", [{"tools": TOOLS}, {"messages": [USER, CALLED, RESULT]}]
)
def test_a_template_without_tools_is_refused_where_the_model_has_marks(
    servers, monkeypatch, body
):
    """In words they would be none of those that the model was trained on."""
    delegate = servers["v3"].tokenizer.delegate
    monkeypatch.setattr(delegate, "chat_template", "{{ messages[0].content }}")
    response = servers["v3"].ask(**body)
    assert response.status_code == 400, response.text
    assert "chat template has no tools" in response.json()["detail"]
