"""Tools and JSON on the real server, by the ``openai`` client, from a 135M model."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import DEMO_FLAGS, run_python, serve

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Paris"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"enum": [3]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "strict": True, "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
JSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


@pytest.fixture(scope="module")
def url(demo_model):
    with serve(*DEMO_FLAGS, "--model", demo_model, "--max-batch-size", "8") as url:
        yield url


@pytest.fixture(scope="module")
def create(url):
    client = OpenAI(base_url=url, api_key="unused", max_retries=0)
    model = client.models.list().data[0].id

    def create(question="How is the weather in Oslo?", **kwargs):
        messages = [{"role": "user", "content": question}]
        defaults = {"messages": messages, "max_tokens": 400, "temperature": 0}
        return client.chat.completions.create(model=model, **defaults | kwargs)

    return create


def weather(calls):
    (call,) = calls
    assert (call.function.name, len(call.id)) == ("get_weather", 9)
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Oslo", "Paris")
    assert isinstance(arguments["days"], int)
    return call.function.arguments


def test_a_named_call_streamed_and_not(create):
    (choice,) = create(tools=TOOLS, tool_choice=NAMED).choices
    assert choice.finish_reason == "tool_calls"
    arguments = weather(choice.message.tool_calls)
    parts = [
        part
        for chunk in create(tools=TOOLS, tool_choice=NAMED, stream=True)
        for choice in chunk.choices
        for part in choice.delta.tool_calls or []
    ]
    assert "".join(p.function.arguments or "" for p in parts) == arguments
    assert len(parts) > 3
    assert [p.function.name for p in parts if p.function.name] == ["get_weather"]


def test_a_required_call(create):
    # At this temperature the model writes anything that the grammar lets it.
    for _ in range(3):
        answer = create(
            tools=TOOLS[:1],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1.5,
        )
        weather(answer.choices[0].message.tool_calls)
    (call,) = (
        create(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        .choices[0]
        .message.tool_calls
    )
    assert isinstance(json.loads(call.function.arguments), dict)


def test_json_without_a_flag(create):
    answer = create(response_format=JSON, temperature=1.0).choices[0].message.content
    assert json.loads(answer).keys() == {"name", "age"}
    answer = create(response_format={"type": "json_object"}, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_eight_at_a_time_with_and_without_grammars(create):
    questions = ["Name a color.", "Count from one to five.", "What is two plus two?"]

    def say(question):
        return create(question, max_tokens=30).choices[0].message.content

    def leave(_):
        stream = create(response_format={"type": "json_object"}, stream=True)
        next(iter(stream))
        stream.close()

    alone = [say(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        said = [pool.submit(say, question) for question in questions]
        left = [pool.submit(leave, i) for i in range(2)]
        called = [
            pool.submit(create, tools=TOOLS, tool_choice=NAMED, temperature=1.0)
            for _ in range(3)
        ]
        assert [future.result() for future in said] == alone
        for future in called:
            weather(future.result().choices[0].message.tool_calls)
        for future in left:
            future.result()
    assert say(questions[0]) == alone[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tools": TOOLS, "tool_choice": NAMED | {"function": {"name": "x"}}}, "'x'"),
        ({"tools": TOOLS + TOOLS}, "Two tools are named"),
        ({"tool_choice": "required"}, "has no tools"),
        ({"n": 2}, "n is 2"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"presence_penalty": 1}, "--enable-penalties"),
        ({"temperature": 2.5}, "temperature must be in"),
    ],
)
def test_bad_input_is_a_400(create, body, says):
    with pytest.raises(BadRequestError, match=says):
        create(**body)


def test_the_agent(url):
    result = run_python("examples/agent.py", "What is 17 + 25?", "--url", url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("add({")
    # What the tool returned, and then the model's answer, of a line or more.
    _, returned, answer = result.stdout.partition("}) = 42\n")
    assert returned
    assert "42" in answer
