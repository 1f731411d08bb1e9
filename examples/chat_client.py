"""Chat with a running server, word by word as it answers.

make serve                       # in another terminal
python examples/chat_client.py "What is the capital of France?"
"""

import argparse
import sys

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a running server.")
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--max-tokens", type=int, default=100)
    args = parser.parse_args()

    client = OpenAI(base_url=args.url, api_key="unused")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": args.prompt}],
        max_tokens=args.max_tokens,
        temperature=0,
        stream=True,
    )
    said = finish = None
    for chunk in stream:
        for choice in chunk.choices:
            # What a model thinks beforehand, which is no part of its answer.
            thought = getattr(choice.delta, "reasoning", None) or ""
            print(thought, end="", flush=True, file=sys.stderr)
            print(choice.delta.content or "", end="", flush=True)
            said = said or choice.delta.content
            finish = choice.finish_reason or finish
    print()
    if finish == "length" and not said:
        sys.exit(f"No answer within {args.max_tokens} tokens: raise --max-tokens.")


if __name__ == "__main__":
    main()
