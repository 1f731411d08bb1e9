"""``max serve --task embeddings_generation`` with the real ``openai`` client.

The graph is that of ``tests/parity/test_embeddings.py``, compiled once.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer

from tests.e2e.conftest import serve
from tests.harness import tolerance
from tests.reference import EMBEDDINGS, TEXTS, prompts
from workbench.checkpoints import CONFIGS, write_headless

CONFIG = CONFIGS["window"]
ROWS = prompts(TEXTS, CONFIG["vocab_size"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a head, whose tokenizer ends texts as e5-mistral's does."""
    folder = write_headless(tmp_path_factory.mktemp("embed"), CONFIG)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"add_eos_token": True}
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serve(
        *("--custom-architectures", "max_mistral", "--model", folder),
        *("--task", "embeddings_generation", "--served-model-name", "m"),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--max-length", "640", "--max-batch-input-tokens", "640"),
        *("--max-batch-size", "8"),
    ) as url:
        yield url


@pytest.fixture(scope="module")
def embed(url):
    client = OpenAI(base_url=url, api_key="unused", max_retries=0)

    def embed(given, **kwargs):
        answer = client.embeddings.create(model="m", input=given, **kwargs)
        return np.array([item.embedding for item in answer.data], np.float32), answer

    return embed


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(CONFIG, want))


# The client asks for base64 unless told otherwise.
@pytest.mark.parametrize("kwargs", [{}, {"encoding_format": "float"}], ids=str)
def test_they_are_transformers_own(embed, kwargs):
    got, answer = embed(ROWS, **kwargs)
    close(got, np.load(EMBEDDINGS))
    count = sum(map(len, ROWS))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == count


def test_a_text_alone_and_among_others(embed, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["query: a cat", "passage: a dog that barks", "x" * 400]
    ids = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    together, answer = embed(texts)
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    close(together, embed(ids)[0])
    for text, want in zip(texts, together, strict=True):
        close(embed(text)[0][0], want)


def test_several_at_a_time_get_their_own(embed):
    rows = [[5 + i] * (10 * i + 1) for i in range(24)]
    alone = [embed([row])[0] for row in rows]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda row: embed([row])[0], rows))
    for got, want in zip(together, alone, strict=True):
        close(got, want)
    distances = np.abs(np.concatenate(alone)[1:] - alone[0]).max(axis=1)
    assert distances.min() > 0.01


@pytest.mark.parametrize(
    ("given", "kwargs", "words"),
    [
        ("", {}, "empty"),
        ("a" * 640, {}, "641"),
        ([[5] * 641], {}, "641"),
        ([[320]], {}, "token id 320"),
        ("a", {"dimensions": 8}, "dimensions"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_refused_and_still_there(embed, given, kwargs, words):
    with pytest.raises(BadRequestError, match=words):
        embed(given, **kwargs)
    embed("a")


def test_no_text_is_generated(url):
    answer = httpx.post(f"{url}/completions", json={"model": "m", "prompt": "a"})
    assert answer.status_code == 400
    assert "/v1/embeddings" in answer.text
