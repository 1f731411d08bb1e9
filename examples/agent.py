"""Let a running server's model call two tools until it answers.

make serve                       # in another terminal
python examples/agent.py "What is 17 + 25?"

The grammar of a call makes it valid whatever the model's size: in the first
step the model has to call a tool, and its arguments fit the tool's schema.
"""

import argparse
import json
import sys

from openai import OpenAI

TEMPERATURES = {"Paris": 18, "Oslo": 7, "Cairo": 31}


def add(a: float, b: float) -> str:
    """Adds two numbers."""
    return str(a + b)


def get_temperature(city: str) -> str:
    """Returns the temperature in a city, in degrees Celsius."""
    return f"{TEMPERATURES[city]} °C"


def describe(function, properties: dict) -> dict:
    """Returns what the API wants to know of a tool whose arguments are all needed."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {
            "name": function.__name__,
            "description": function.__doc__,
            "parameters": parameters,
            "strict": True,
        },
    }


MAX_TOKENS = 200  # of a step, in which a model may think too
FUNCTIONS = {"add": add, "get_temperature": get_temperature}
TOOLS = [
    describe(add, {"a": {"type": "number"}, "b": {"type": "number"}}),
    describe(get_temperature, {"city": {"enum": sorted(TEMPERATURES)}}),
]


def call(name: str, arguments: str) -> str:
    """Returns a tool's result, or what is wrong with the call, for the model."""
    try:
        return FUNCTIONS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return f"Error: {error!r}"


def run(client: OpenAI, question: str, max_steps: int = 4) -> str:
    """Answers a question; prints each call with its result."""
    model = client.models.list().data[0].id
    messages: list = [{"role": "user", "content": question}]
    for step in range(max_steps):
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            tool_choice="required" if step == 0 else "auto",
            parallel_tool_calls=False,
            max_tokens=MAX_TOKENS,
            temperature=0,
        ).choices[0]
        message = answer.message
        # What the model thinks beforehand, which is no part of its answer.
        if thought := getattr(message, "reasoning", None):
            print(thought, file=sys.stderr)
        if not message.tool_calls:
            if answer.finish_reason == "length" and not message.content:
                return f"No answer within {MAX_TOKENS} tokens: raise MAX_TOKENS."
            return message.content or ""
        messages.append(message.model_dump(include={"role", "content", "tool_calls"}))
        for made in message.tool_calls:
            function = made.function
            result = call(function.name, function.arguments)
            print(f"{function.name}({function.arguments}) = {result}")
            messages.append(
                {"role": "tool", "tool_call_id": made.id, "content": result}
            )
    return "No answer."


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a model that has tools.")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    args = parser.parse_args()
    print(run(OpenAI(base_url=args.url, api_key="unused"), args.question))


if __name__ == "__main__":
    main()
