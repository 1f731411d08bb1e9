"""What a chat's messages may be, and what is made of them for the model."""

import json

import pytest

from tests.tools import NAMED, TOOLS

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


@pytest.mark.parametrize("call_id", ["", "\ud800", "x" * 10_000])
def test_any_id_is_shortened(v13, call_id):
    called = json.loads(json.dumps(CALLED))
    called["tool_calls"][0]["id"] = call_id
    result = RESULT | {"tool_call_id": call_id}
    v13.answer("2.", messages=[USER, called, result], tools=TOOLS)
    assert v13.prompt.split("add#")[1][:9].isalnum()


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
    server.answer("2.")
    assert "tool" not in server.prompt
