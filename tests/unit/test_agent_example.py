"""The examples: those that ask a server, with a model that is played; paths."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from workbench.demo import ROOT


def load(name):
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


agent = load("agent")


class Client:
    """Answers with what it was given, and keeps what it was asked."""

    def __init__(self, *answers, finish="stop"):
        self.answers = list(answers)
        self.finish = finish
        self.asked = []
        self.models = SimpleNamespace(
            list=lambda: SimpleNamespace(data=[SimpleNamespace(id="m")])
        )
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **body):
        self.asked.append(json.loads(json.dumps(body)))
        message = ChatCompletionMessage(role="assistant", **self.answers.pop(0))
        choice = SimpleNamespace(message=message, finish_reason=self.finish)
        return SimpleNamespace(choices=[choice])


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


def test_what_the_model_thinks_is_apart(capsys):
    client = Client({"content": "42", "reasoning": "17 + 25 is"})
    assert agent.run(client, "What is 17 + 25?") == "42"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "17 + 25 is\n")


def test_a_thought_without_end_is_no_answer():
    client = Client({"content": None, "reasoning": "Hm."}, finish="length")
    assert agent.run(client, "Why?") == "No answer within 200 tokens: raise MAX_TOKENS."
    client = Client({"content": "Beca"}, finish="length")
    assert agent.run(client, "Why?") == "Beca"


@pytest.fixture
def chat(monkeypatch):
    """Runs chat_client.py; the model answers with some deltas."""
    example = load("chat_client")

    def run(*deltas, finish):
        choices = [
            SimpleNamespace(delta=ChoiceDelta(**delta), finish_reason=None)
            for delta in deltas
        ]
        choices[-1].finish_reason = finish
        client = Client()
        client.chat.completions.create = lambda **body: [
            SimpleNamespace(choices=[choice]) for choice in choices
        ]
        monkeypatch.setattr(example, "OpenAI", lambda **where: client)
        monkeypatch.setattr(sys, "argv", ["chat_client", "Why?"])
        example.main()

    return run


def test_a_chat_with_thoughts(chat, capsys):
    chat({"reasoning": "Hm."}, {"content": "Be"}, {"content": "cause."}, finish="stop")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("Because.\n", "Hm.")
    chat({"content": "Be"}, {}, finish="length")
    with pytest.raises(SystemExit, match="No answer within 100 tokens"):
        chat({"reasoning": "Hm"}, {"reasoning": "."}, finish="length")


@pytest.mark.parametrize("name", ["generate", "logits"])
def test_a_link_to_weights_keeps_its_suffix(name, tmp_path, monkeypatch):
    """The Hub's cache links to files without one."""
    example = load(name)
    asked = {}

    def from_flat_kwargs(**flags):
        asked.update(flags)
        raise SystemExit

    arguments = SimpleNamespace(from_flat_kwargs=from_flat_kwargs)
    monkeypatch.setattr(example, "PipelineArgs", arguments)
    (tmp_path / "0123abcd").touch()
    (tmp_path / "m.gguf").symlink_to(tmp_path / "0123abcd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "m", "Hi", "--weight-path", "m.gguf"])
    with pytest.raises(SystemExit):
        example.main()
    assert asked["weight_path"] == [tmp_path / "m.gguf"]
