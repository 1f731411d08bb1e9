"""What mistral-common makes of a chat, for each kind of tokenizer.

The committed goldens are made here, in an environment of its own:

    pip install mistral-common==1.13.1 sentencepiece
    python -m tests.chat_reference build/tokenizers
"""

import json
import sys
from pathlib import Path

from workbench.tokenizers import TOKENIZERS

GOLDEN = Path(__file__).parent / "fixtures" / "chats.json"

SYSTEM = {"role": "system", "content": "Be brief; naïve façades — 日本語 ok."}
CHATS = {
    "one": [{"role": "user", "content": "What is 2+2?"}],
    "system": [SYSTEM, {"role": "user", "content": "Hello\n\n  there 🎉"}],
    "turns": [
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?  "},
        {"role": "user", "content": "  def f(x):\n        return x\n"},
        {"role": "assistant", "content": "It returns x."},
        {"role": "user", "content": "Thanks"},
    ],
}


def main() -> None:
    """Makes the goldens anew."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    golden = {}
    for kind, file in TOKENIZERS.items():
        tokenizer = MistralTokenizer.from_file(str(Path(sys.argv[1]) / file))
        golden[kind] = {
            name: tokenizer.encode_chat_completion(
                ChatCompletionRequest(messages=chat)
            ).tokens
            for name, chat in CHATS.items()
        }
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
