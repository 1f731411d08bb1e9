"""A checkpoint with Mistral's own tekken.json: a server that encodes with it.

With mistral-common installed, transformers alone would take a tokenizer class
with which MAX's worker does not start.
"""

import httpx
import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from tests.e2e.conftest import serve
from workbench.tokenizers import write_model

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {}}},
        },
    }
]
CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
}
MESSAGES = [
    {"role": "system", "content": "[/INST] is text here."},
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": '{"t": 20}'},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Posts to its routes; and mistral-common's tokenizer of the same file."""
    folder = tmp_path_factory.mktemp("model") / "m"
    file = write_model("v11 tekken", folder)
    with serve(
        *("--custom-architectures", "max_mistral", "--model", folder),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--max-length", "256", "--max-batch-size", "1"),
    ) as url:
        name = httpx.get(f"{url}/models").json()["data"][0]["id"]

        def post(path="chat/completions", **body):
            body = {"model": name, "max_tokens": 3} | body
            return httpx.post(f"{url}/{path}", json=body, timeout=60)

        yield post, MistralTokenizer.from_file(file)


def test_the_ids_are_those_of_mistral_common(server):
    post, tokenizer = server
    request = ChatCompletionRequest.from_openai(messages=MESSAGES, tools=TOOLS)
    want = tokenizer.encode_chat_completion(request).tokens
    response = post(messages=MESSAGES, tools=TOOLS, return_token_ids=True)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["prompt_tokens"] == len(want)
    assert answer["choices"][0]["prompt_token_ids"] == want


def test_what_mistral_common_refuses_is_a_400(server):
    post, _ = server
    refused = post(messages=[MESSAGES[1], {"role": "assistant", "content": "20"}])
    assert refused.status_code == 400
    assert "Expected last role User or Tool" in refused.text
    assert post(messages=[MESSAGES[1]]).status_code == 200


def test_code_between_two_texts(server):
    post, tokenizer = server
    code = {"prompt": "def f(a):\n    return ", "suffix": "\n\nprint(f(3))"}
    want = tokenizer.encode_fim(FIMRequest(**code)).tokens
    answer = post("completions", return_token_ids=True, **code)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["prompt_token_ids"] == want
    assert choice["finish_reason"] in ("length", "stop")
    stream = post("completions", stream=True, **code)
    assert "[DONE]" in stream.text
