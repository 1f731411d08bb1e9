"""The table of fields in docs/requests.md, row by row, over MAX's own routes."""

import json

import pytest

from max_mistral.server.request_limits import LONGEST_STOPS, MOST_STOPS
from tests.routes import EOS, Routes

PATHS = ("completions", "chat/completions")
CHAT, TEXT = ["chat/completions"], ["completions"]


@pytest.fixture(scope="module")
def plain(checkpoint):
    return Routes(checkpoint)


@pytest.fixture(scope="module")
def flagged(checkpoint):
    flags = ("enable_echo", "enable_min_tokens", "enable_penalties")
    return Routes(checkpoint, **dict.fromkeys(flags, True))


def post(routes, path, **body):
    routes.worker.answer = [70, 71, EOS]
    if path == "completions":
        return routes.complete(**{"prompt": [5]} | body)
    return routes.chat(**body)


def refusal(routes, path, **body):
    answers = [post(routes, path, **body), post(routes, path, **body, stream=True)]
    for answer in answers:
        assert answer.status_code == 400, answer.text
        assert routes.context is None
    assert answers[0].json() == answers[1].json()
    return answers[0].json()["detail"]


def asked(routes, path, **body):
    answer = post(routes, path, **body)
    assert answer.status_code == 200, answer.text
    return routes.context


def test_more_prompts_than_a_request_may_have(plain):
    # As a stream it is refused for another reason, before any is answered.
    for count, words in ((2048, "a stream answers one"), (2049, "may have 2048")):
        answer = plain.complete(["a"] * count, stream=True)
        assert answer.status_code == 400
        assert f"prompt has {count} prompts" in answer.json()["detail"]
        assert words in answer.json()["detail"]


# Honoured: the worker is asked for it.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("temperature", 0.3, None),
        ("top_p", 0.4, None),
        ("top_k", 7, None),
        ("min_p", 0.2, None),
        ("seed", 11, None),
        ("seed", 0, None),
        ("stop", ["x"], None),
        ("stop_token_ids", [9], None),
        ("ignore_eos", True, None),
        ("max_tokens", 5, "max_new_tokens"),
    ],
)
def test_sampling_is_honoured(plain, path, field, value, name):
    params = asked(plain, path, **{field: value}).sampling_params
    assert getattr(params, name or field) == value


def test_max_completion_tokens(plain):
    body = {"max_tokens": 3, "max_completion_tokens": 5}
    assert asked(plain, *CHAT, **body).sampling_params.max_new_tokens == 5


@pytest.mark.parametrize("path", PATHS)
def test_of_ends_that_are_ignored_the_clients_own_stay(plain, path):
    def ends(**body):
        return asked(plain, path, **body).eos_tracker.eos_token_ids

    assert ends(stop_token_ids=[9]) == {EOS, 9}
    assert ends(ignore_eos=True, stop_token_ids=[9]) == {9}
    assert ends(ignore_eos=True, stop_token_ids=[9, EOS]) == {9}
    assert ends(ignore_eos=True) == set()


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("completions", {"logprobs": 2}, 2),
        ("completions", {"logprobs": 0}, 1),
        ("chat/completions", {"logprobs": True}, 1),
        ("chat/completions", {"logprobs": True, "top_logprobs": 3}, 3),
        ("chat/completions", {"logprobs": True, "top_logprobs": 0}, 1),
        ("chat/completions", {"logprobs": False}, 0),
    ],
)
def test_logprobs(plain, path, body, count):
    assert asked(plain, path, **body).log_probabilities == count


@pytest.mark.parametrize("path", PATHS)
def test_more_likely_tokens_than_can_be_asked_for(plain, path):
    def body(count):
        if path == "completions":
            return {"logprobs": count}
        return {"logprobs": True, "top_logprobs": count}

    assert asked(plain, path, **body(7)).log_probabilities == 7
    said = refusal(plain, path, **body(8))
    assert f"`{next(reversed(body(8)))}` must be in [0, 7], was 8" in said


@pytest.mark.parametrize("path", PATHS)
def test_where_an_answer_is_decoded_and_what_is_cached(plain, path):
    context = asked(plain, path, target_endpoint="tcp://x:1", dkv_cache_hint={"a": [1]})
    assert context.target_endpoint == "tcp://x:1"
    assert json.loads(context.dkv_cache_hint) == {"a": [1]}
    context = asked(plain, path)
    assert context.target_endpoint is context.dkv_cache_hint is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("setting", ["true", "false"])
def test_a_salt_is_the_clients_where_a_setting_says_so(
    checkpoint, monkeypatch, path, setting
):
    monkeypatch.setenv("MAX_SERVE_USE_CLIENT_CACHE_SALT", setting)
    salt = asked(Routes(checkpoint), path, cache_salt="s").cache_salt
    assert salt == ("s" if setting == "true" else None)


@pytest.mark.parametrize("path", PATHS)
def test_stream_and_its_options(plain, path):
    options = {"include_usage": True}
    answer = post(plain, path, stream=True, stream_options=options)
    *_, usage, done = answer.text.split("data:")[1:]
    assert done.strip() == "[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", PATHS)
def test_return_token_ids(plain, path):
    (choice,) = post(plain, path, return_token_ids=True).json()["choices"]
    assert choice["prompt_token_ids"] == plain.prompt_ids
    assert choice["token_ids"][:2] == [70, 71]


def test_several_prompts(plain):
    answer = plain.complete(["a", "b"])
    assert len(answer.json()["choices"]) == 2


def test_a_prompt_that_is_refused_ends_the_others(checkpoint):
    """The worker would go on with them, and no one would read the answers."""
    routes = Routes(checkpoint)
    routes.worker.may_answer.clear()
    refused = routes.complete([[5], [6], [10**9]])
    assert refused.status_code == 400
    assert "token id 1000000000" in refused.json()["detail"]
    assert routes.worker.streams == 0
    numbers = [str(each).rpartition("_")[2] for each in routes.worker.cancelled]
    assert sorted(numbers) == ["0", "1"]


# Honoured with a flag: refused without it, unless it asks for nothing.

FLAGS = [
    ("frequency_penalty", 0.5, 0, "--enable-penalties"),
    ("presence_penalty", -0.5, 0.0, "--enable-penalties"),
    ("repetition_penalty", 1.5, 1.0, "--enable-penalties"),
    ("min_tokens", 1, 0, "--enable-min-tokens"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("field", "value", "nothing", "flag"), FLAGS)
def test_a_field_that_needs_a_flag(plain, flagged, path, field, value, nothing, flag):
    said = refusal(plain, path, **{field: value})
    assert said.startswith(f"{field} is {value}, but this server was started without")
    assert flag in said
    for nought in (nothing, None):
        assert post(plain, path, **{field: nought}).status_code == 200
    params = asked(flagged, path, **{field: value}).sampling_params
    assert getattr(params, field.replace("_tokens", "_new_tokens")) == value


def test_echo(plain, flagged):
    assert "--enable-echo" in refusal(plain, *TEXT, echo=True, logprobs=1)
    assert post(plain, *TEXT, echo=False).status_code == 200
    assert "needs logprobs" in refusal(flagged, *TEXT, echo=True)
    assert asked(flagged, *TEXT, echo=True, logprobs=0).log_probabilities_echo


# Refused by name.


@pytest.mark.parametrize(
    ("paths", "field", "value"),
    [
        (PATHS, "n", 2),
        (PATHS, "n", 0),
        (TEXT, "best_of", 3),
        (PATHS, "logit_bias", {"5": -100}),
        (PATHS, "thinking_temperature", 0.5),
        (CHAT, "audio", {"format": "wav", "voice": "x"}),
        (CHAT, "web_search_options", {}),
        (CHAT, "moderation", {"model": "x"}),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "reasoning_split", False),
        (CHAT, "top_logprobs", 2),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "function_call", "auto"),
        (CHAT, "max_completion_tokens", 0),
        (CHAT, "response_format", {"json_schema": {"name": "a", "schema": {}}}),
        (CHAT, "response_format", {"type": "json_schema"}),
    ],
)
def test_what_is_not_supported_is_named(plain, paths, field, value):
    for path in paths:
        assert refusal(plain, path, **{field: value}).startswith(field)


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1},
        {"logit_bias": {}},
        {"n": None, "logit_bias": None},
        {"temperature": 0.5, "thinking_temperature": 0.5},
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_what_asks_for_nothing_is_taken(plain, path, body):
    assert post(plain, path, **body).status_code == 200


def test_one_of_each_is_taken(plain):
    assert post(plain, *TEXT, best_of=1).status_code == 200
    assert post(plain, *CHAT, modalities=["text"]).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", 99, "[0.0, 2.0]"),
        ("temperature", -1, "[0.0, 2.0]"),
        ("temperature", float("nan"), "[0.0, 2.0]"),
        ("top_p", 5, "[0.0, 1.0]"),
        ("min_p", -1, "[0.0, 1.0]"),
        ("top_k", -5, "-1 or greater than 0"),
        ("max_tokens", -1, "non-negative"),
        ("max_tokens", 0, "one token or more"),
        ("max_tokens", -(2**70), "non-negative"),
        ("min_tokens", -1, "non-negative"),
        ("frequency_penalty", 3, "[-2.0, 2.0]"),
        ("presence_penalty", -3, "[-2.0, 2.0]"),
        ("repetition_penalty", 0, "greater than 0"),
        ("model", "gpt-4", "'gpt-4', which is not served"),
        ("stop", "", "empty text"),
        ("stop", ["a", ""], "empty text"),
        ("stop", ["a", "\ud800"], "surrogate"),
        ("stop", ["a"] * (MOST_STOPS + 1), f"may have {MOST_STOPS} texts"),
        ("stop", "a" * (LONGEST_STOPS + 1), f"{LONGEST_STOPS + 1} characters"),
    ],
)
def test_a_value_out_of_its_range_is_named(plain, path, field, value, words):
    said = refusal(plain, path, **{field: value})
    assert said.startswith(field)
    assert words in said


def test_max_completion_tokens_by_its_own_name(plain):
    said = refusal(plain, *CHAT, max_completion_tokens=-1)
    assert said.startswith("max_completion_tokens")


def test_a_stream_of_several_prompts(plain):
    for prompt in (["a", "b"], [[5], [6]]):
        answer = plain.complete(prompt, stream=True)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("prompt has 2 prompts")
    assert plain.complete(["a"], stream=True).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" * 100_000, "levels"),
        ('{"user": ' * 100_000, "levels"),
        ('{"model": "m", "stop": ' + "[" * 100_000 + "]" * 100_000 + "}", "levels"),
        ('{"seed": ' + "9" * 5000 + "}", "4300 digits"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        (b'{"model": "\xff"}', "utf-8"),
    ],
    ids=["lists", "objects", "field", "digits", "nothing", "cut", "bytes"],
)
def test_a_body_that_cannot_be_read(plain, path, body, words):
    answer = plain.post_text(path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith("the request's JSON ")
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", ["[]", "null", "3", "{}", '{"model": 3}'])
def test_a_body_that_is_no_request(plain, path, body):
    answer = plain.post_text(path, body)
    assert answer.status_code == 400, answer.text


# Ignored: it only labels the request, or says how its answer may be made fast.


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "auto"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h"},
        {"prompt_cache_options": {}},
        {"prediction": {"type": "content", "content": "x"}},
        {"verbosity": "low"},
    ],
)
def test_labels_are_ignored(plain, body):
    assert post(plain, *CHAT, **body).status_code == 200


def test_a_completion_has_one_label(plain):
    assert post(plain, *TEXT, user="u").status_code == 200
    assert refusal(plain, *TEXT, metadata={"a": "b"}).startswith("metadata: ")


def test_an_unknown_field_is_named(plain):
    for path in PATHS:
        assert "temprature" in refusal(plain, path, temprature=1)


def test_so_is_one_of_a_message(plain, checkpoint):
    messages = [{"role": "user", "content": "Hi", "colour": "red"}]
    said = refusal(plain, *CHAT, messages=messages)
    assert said.startswith("messages[0] has a field 'colour' that is not known")
    routes = Routes(checkpoint, allow_extra_request_fields=True)
    assert post(routes, *CHAT, messages=messages).status_code == 200


def test_a_flag_lets_unknown_fields_pass_but_not_thinking(checkpoint):
    """MAX reads it, and would drop it with the flag: its model has no such field."""
    routes = Routes(checkpoint, allow_extra_request_fields=True)
    said = refusal(routes, *CHAT, thinking={"type": "enabled"})
    assert said.startswith("thinking is asked for")
    assert "`thinking`" in refusal(routes, *CHAT, thinking="on")
    for value in ({"type": "disabled"}, None):
        assert post(routes, *CHAT, thinking=value, colour="red").status_code == 200
    # Completions have none.
    assert post(routes, *TEXT, thinking={"type": "enabled"}).status_code == 200
