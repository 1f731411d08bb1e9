"""``make serve``'s server with a real model and the real ``openai`` client."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import DEMO_FLAGS, run_python, serve

QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def url(demo_model):
    with serve(*DEMO_FLAGS, "--model", demo_model, "--max-batch-size", "8") as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url, api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def ask(client):
    model = client.models.list().data[0].id

    def ask(question=QUESTION, **kwargs):
        defaults = {"max_tokens": 30, "temperature": 0}
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            **defaults | kwargs,
        )

    return ask


def test_an_answer(ask):
    (choice,) = ask().choices
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"


def test_a_stream_says_the_same(ask):
    chunks = [
        choice.delta.content or ""
        for chunk in ask(stream=True)
        for choice in chunk.choices
    ]
    assert len(chunks) > 3
    assert "".join(chunks) == ask().choices[0].message.content


def test_several_at_a_time_get_their_own_answers(ask):
    questions = [
        QUESTION,
        "Count from one to five.",
        "Name a color.",
        "What is two plus two?",
        "Write one sentence about the sea.",
    ]
    alone = [ask(q).choices[0].message.content for q in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(
            pool.map(lambda q: ask(q).choices[0].message.content, questions)
        )
    assert together == alone
    assert len(set(alone)) == len(questions)


def test_max_tokens(ask):
    response = ask("Tell me a long story.", max_tokens=7)
    assert response.usage.completion_tokens == 7
    assert response.choices[0].finish_reason == "length"


def test_a_stop_string(ask):
    whole = ask().choices[0].message.content
    (choice,) = ask(stop=["Paris"]).choices
    assert choice.finish_reason == "stop"
    assert whole.startswith(choice.message.content.removesuffix("Paris"))
    assert len(choice.message.content) < len(whole)


def test_log_probabilities(ask):
    (choice,) = ask(logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert "".join(t.token for t in tokens).startswith("The capital of France")
    for token in tokens:
        # Greedy: the chosen token is the likeliest.
        assert token.logprob <= 0
        assert token.logprob == max(t.logprob for t in token.top_logprobs)


def test_a_prompt_beyond_the_context_is_refused(ask):
    with pytest.raises(BadRequestError, match=r"2048"):
        ask("word " * 3000)
    assert "Paris" in ask().choices[0].message.content


def test_no_messages_are_refused(client, ask):
    with pytest.raises(BadRequestError):
        client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[]
        )


def test_an_image_is_refused(client, ask):
    picture = {"url": "data:image/png;base64,iVBORw0KGgo="}
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": picture},
    ]
    with pytest.raises(BadRequestError, match="image_url content type not supported"):
        ask(content)
    assert "Paris" in ask().choices[0].message.content


def test_the_chat_client_example(url):
    result = run_python("examples/chat_client.py", QUESTION, "--url", url)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
