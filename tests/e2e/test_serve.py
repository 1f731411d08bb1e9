"""``make serve``'s server with a real model and the real ``openai`` client."""

from concurrent.futures import ThreadPoolExecutor

import httpx
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
    # The second begins and ends within a token.
    for stop in ("Paris", whole[5:13]):
        (choice,) = ask(stop=["no such text", stop]).choices
        before = whole[: whole.index(stop)]
        assert (choice.message.content, choice.finish_reason) == (before, "stop")
        *some, last = [c for part in ask(stop=stop, stream=True) for c in part.choices]
        assert "".join(c.delta.content or "" for c in [*some, last]) == before
        assert last.finish_reason == "stop"
        assert all(c.finish_reason is None for c in some)


def test_a_stop_string_of_a_completion(client, ask):
    """Of several at a time, each of which would go on for long."""
    model = client.models.list().data[0].id

    def complete(**kwargs):
        prompt = "Once upon a time, there was a king."
        sampling = {"max_tokens": 200, "temperature": 0}
        return client.completions.create(
            model=model, prompt=prompt, **sampling | kwargs
        )

    text = complete(max_tokens=60).choices[0].text
    stops = [text[at : at + 6] for at in (0, 17, 30, 101)]
    wanted = [(text[: text.index(stop)], "stop") for stop in stops]

    def whole(stop):
        (choice,) = complete(stop=stop).choices
        return choice.text, choice.finish_reason

    def streamed(stop):
        chunks = complete(stop=stop, stream=True)
        choices = [choice for chunk in chunks for choice in chunk.choices]
        return "".join(c.text for c in choices), choices[-1].finish_reason

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.map(way, stops * 3) for way in (whole, streamed)]
        assert [list(answer) for answer in answers] == [wanted * 3] * 2


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
    with pytest.raises(BadRequestError, match="read no images here"):
        ask(content)
    assert "Paris" in ask().choices[0].message.content


HI = [{"role": "user", "content": "Hi"}]
BOMB = "{% set x = 'a' * 1000000 %}{{ x | length }}"
VOCABULARY = 49152


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"prompt": [99999999]}, "token id 99999999"),
        ("completions", {"prompt": [5, VOCABULARY]}, f"token id {VOCABULARY}"),
        ("completions", {"prompt": [-1]}, "token id -1"),
        ("completions", {"prompt": [2**70]}, f"token id {2**70}"),
        ("completions", {"prompt": []}, "prompt is empty"),
        ("completions", {"prompt": ""}, "prompt is empty"),
        ("completions", {"prompt": [5] * 3000}, "2048"),
        ("completions", {"prompt": "f(", "suffix": ")"}, "suffix needs a model"),
        ("completions", {"prompt": [5], "stop_token_ids": [2**70]}, "token id"),
        ("chat/completions", {"prompt_tokens": [99999999]}, "token id 99999999"),
        ("chat/completions", {"chat_template_kwargs": {"chat_template": BOMB}}, "not"),
        ("chat/completions", {"chat_template_kwargs": {"tokenize": True}}, "not for"),
    ],
)
def test_what_would_end_the_server_is_refused(url, ask, path, body, words):
    name = httpx.get(f"{url}/models").json()["data"][0]["id"]
    chat = {"messages": HI} if path.startswith("chat") else {}
    for stream in (False, True):
        response = httpx.post(
            f"{url}/{path}",
            json={"model": name, "stream": stream} | chat | body,
            timeout=60,
        )
        assert response.status_code == 400, response.text
        assert words in response.text
    assert ask(max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    "body",
    [
        {"top_k": 2**63 - 1},
        {"top_k": 10**8},
        {"seed": 2**64},
        {"seed": -(2**63)},
        {"min_p": 1, "top_p": 0, "top_k": 2**70},
    ],
)
def test_numbers_beyond_all_bounds(ask, body):
    # Else a sampled end may come first.
    body = body | {"ignore_eos": True}
    (choice,) = ask(temperature=1, max_tokens=4, extra_body=body).choices
    assert choice.finish_reason == "length"


def test_the_chat_client_example(url):
    result = run_python("examples/chat_client.py", QUESTION, "--url", url)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
