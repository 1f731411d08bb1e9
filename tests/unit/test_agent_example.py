"""examples/agent.py with a model that is played."""

import importlib.util
import json
from types import SimpleNamespace

from openai.types.chat import ChatCompletionMessage

from workbench.demo import ROOT

spec = importlib.util.spec_from_file_location("agent", ROOT / "examples" / "agent.py")
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)


class Client:
    """Answers with what it was given, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.models = SimpleNamespace(
            list=lambda: SimpleNamespace(data=[SimpleNamespace(id="m")])
        )
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **body):
        self.asked.append(json.loads(json.dumps(body)))
        message = ChatCompletionMessage(role="assistant", **self.answers.pop(0))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])


def calling(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}]
    }


def test_the_result_goes_back_to_the_model(capsys):
    client = Client(calling("add", '{"a": 17, "b": 25}'), {"content": "It is 42."})
    assert agent.run(client, "What is 17 + 25?") == "It is 42."
    assert 'add({"a": 17, "b": 25}) = 42' in capsys.readouterr().out
    first, second = client.asked
    assert (first["tool_choice"], second["tool_choice"]) == ("required", "auto")
    *_, call, result = second["messages"]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == "abcdefghi"
    assert result["content"] == "42"


def test_a_wrong_call_is_told_to_the_model():
    client = Client(
        calling("get_temperature", '{"city": "Rome"}'), {"content": "Sorry."}
    )
    assert agent.run(client, "How warm is it in Rome?") == "Sorry."
    assert client.asked[1]["messages"][-1]["content"].startswith("Error: KeyError")


def test_it_stops():
    client = Client(*[calling("add", '{"a": 1, "b": 1}')] * 3)
    assert agent.run(client, "Add.", max_steps=3) == "No answer."
    assert len(client.asked) == 3
