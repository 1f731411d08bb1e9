"""The tokenizer behind MAX's real routes: what a client may and may not do."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from max.pipelines.lib import TextTokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.mistral import MistralConverter
from transformers.tokenization_mistral_common import MistralCommonBackend

from max_mistral.errors import UserError
from max_mistral.tokenizer import MistralTokenizer
from tests.routes import EOS, Routes, configure
from workbench.checkpoints import BASE
from workbench.tokenizers import tokenizer_file, write_model

ANSWER = [70, 71, EOS]
VOCAB = BASE["vocab_size"]
TEMPLATE = (
    "{% if fail %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "{% if broken %}{{ 1 / 0 }}{% endif %}"
    "{{ style }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture(scope="module")
def routes(checkpoint):
    return Routes(checkpoint)


@pytest.fixture(scope="module")
def flagged(checkpoint):
    """With flags for what a server does not do without."""
    return Routes(checkpoint, enable_echo=True, enable_min_tokens=True)


@pytest.fixture(scope="module")
def styled(checkpoint, tmp_path_factory):
    """With a --chat-template that has options."""
    file = tmp_path_factory.mktemp("template") / "template.jinja"
    file.write_text(TEMPLATE)
    return Routes(checkpoint, chat_template=file)


def complete(routes, prompt, **body):
    routes.worker.answer = ANSWER
    return routes.complete(prompt, **body)


def chat(routes, **body):
    routes.worker.answer = ANSWER
    return routes.chat(**body)


def assert_refused(routes, response, *words):
    assert response.status_code == 400, response.text
    assert routes.context is None
    for word in words:
        assert word in response.text


@pytest.mark.parametrize("token", [VOCAB, 99999999, -1, 2**63, -(2**63), 2**70])
@pytest.mark.parametrize("before", [[], [5, 6]])
def test_an_id_beyond_the_vocabulary_is_named(routes, token, before):
    words = f"token id {token} at position {len(before)}", f"0 to {VOCAB - 1}"
    ids = [*before, token, 7]
    assert_refused(routes, complete(routes, ids), *words)
    assert_refused(routes, complete(routes, [ids]), *words)
    assert_refused(routes, complete(routes, ids, stream=True), *words)
    assert_refused(routes, chat(routes, prompt_tokens=ids), *words)
    assert complete(routes, [[5], ids]).status_code == 400


def test_every_id_of_the_vocabulary_is_taken(routes):
    for start in range(0, VOCAB, 160):
        ids = list(range(start, start + 160))
        assert complete(routes, ids).status_code == 200
        assert routes.prompt_ids == ids


@pytest.mark.parametrize("messages", [{}, {"messages": []}, {"messages": None}])
def test_a_chat_of_tokens_needs_no_messages(routes, messages):
    routes.worker.answer = ANSWER
    body = {"prompt_tokens": [1, 5, 6]} | messages
    response = routes.post("chat/completions", **body)
    assert response.status_code == 200, response.text
    assert routes.prompt_ids == [1, 5, 6]
    for tokens in ([], None):
        body["prompt_tokens"] = tokens
        response = routes.post("chat/completions", **body)
        assert_refused(routes, response, "messages")


@pytest.mark.parametrize("prompt", [[], [[]], [""], ""])
@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_prompt_is_refused(routes, prompt, stream):
    assert_refused(routes, complete(routes, prompt, stream=stream), "prompt is empty")


@pytest.mark.parametrize("prompt", [[5] * 257, "a" * 257, [5] * 10**6, [-1] * 257])
def test_a_prompt_beyond_the_context_is_refused(routes, prompt):
    assert_refused(routes, complete(routes, prompt), "length of 256 tokens")


def sampling(routes, **body):
    response = complete(routes, [5], temperature=1, **body)
    assert response.status_code == 200, response.text
    return routes.context.sampling_params


def test_a_top_k_of_all_tokens_is_no_limit(routes):
    """The sampler would take memory for each, and at 2^63 - 1 end the process."""
    for top_k in (VOCAB, 10**8, 2**63 - 1, 2**70):
        assert sampling(routes, top_k=top_k).top_k == -1
    for top_k in (1, VOCAB - 1, -1):
        assert sampling(routes, top_k=top_k).top_k == top_k


def test_numbers_that_do_not_fit_into_64_bits(routes, flagged):
    assert sampling(routes, seed=2**70 + 3).seed == 3
    assert sampling(routes, seed=2**63).seed == 2**63
    assert sampling(routes, seed=-1).seed == 2**64 - 1
    assert sampling(routes, max_tokens=2**70).max_new_tokens == 256
    assert sampling(routes, max_tokens=7).max_new_tokens == 7
    refused = complete(flagged, [5], min_tokens=2**70)
    assert_refused(flagged, refused, "min_tokens", "max_length (256)")


def test_a_stop_token_beyond_the_vocabulary_is_named(routes):
    for token in (-1, VOCAB, 2**70):
        refused = complete(routes, [5], stop_token_ids=[9, token])
        assert_refused(routes, refused, f"token id {token}")
    assert sampling(routes, stop_token_ids=[9]).stop_token_ids == [9]


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_a_number_that_is_none_is_refused(routes, name):
    """JSON as Python reads it has NaN, which no bound of MAX's holds off."""
    refused = complete(routes, [5], **{name: float("nan")})
    assert_refused(routes, refused, f"{name} is nan; it must be a finite number")


BOMB = "{% set x = 'a' * 1000 %}{{ x | length }}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", BOMB),
        ("tokenize", True),
        ("tools", []),
        ("documents", []),
        ("messages", []),
        ("conversation", []),
        ("prompt", "Ho"),
        ("tokenizer_kwargs", {}),
        ("return_dict", True),
        ("bos_token", "[INST]"),
        ("self", 1),
        ("raise_exception", 1),
        ("range", 1),
        ("a b", 1),
        ("", 1),
    ],
)
def test_a_client_cannot_replace_what_the_template_stands_on(styled, name, value):
    refused = chat(styled, chat_template_kwargs={name: value})
    assert_refused(styled, refused, "is not for clients to set")


@pytest.mark.parametrize(
    "value", ["a" * 4097, 10**9, -(10**9), 2**70, 1e300, [1], {"a": 1}]
)
def test_an_option_is_a_small_scalar(styled, value):
    refused = chat(styled, chat_template_kwargs={"style": value})
    assert_refused(styled, refused, "option 'style' must be a text of at most 4096")


@pytest.mark.parametrize("switch", ["add_generation_prompt", "continue_final_message"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_switch_is_true_or_false(styled, switch, value):
    refused = chat(styled, chat_template_kwargs={switch: value})
    assert_refused(styled, refused, f"option '{switch}' must be true or false")


def test_an_option_that_the_template_does_not_have(styled):
    refused = chat(styled, chat_template_kwargs={"stile": 1})
    assert_refused(styled, refused, "no option 'stile'")


def test_options_of_the_template(styled):
    def prompt(**options):
        response = chat(styled, chat_template_kwargs=options)
        assert response.status_code == 200, response.text
        return styled.prompt

    assert prompt() == "Hi>"
    assert prompt(style="Say ") == "Say Hi>"
    assert prompt(style=2.5) == "2.5Hi>"
    assert prompt(add_generation_prompt=False) == "Hi"
    # MAX adds both of thinking's switches to what speaks of reasoning.
    assert prompt(enable_thinking=False) == "Hi>"
    assert chat(styled, reasoning={"enabled": False}).status_code == 200
    assert chat(styled, reasoning_effort="none").status_code == 200


def test_a_template_leaves_an_answer_that_is_begun_open(routes):
    """By the options that the refusal of ``prefix`` names."""
    begun = {"role": "assistant", "content": "It is"}
    options = {"continue_final_message": True, "add_generation_prompt": False}
    messages = [{"role": "user", "content": "Hi"}, begun]
    response = chat(routes, messages=messages, chat_template_kwargs=options)
    assert response.status_code == 200, response.text
    assert routes.prompt == "<s>[INST]Hi[/INST]It is"


@pytest.mark.parametrize(
    "asked",
    [
        {"reasoning_effort": "low"},
        {"reasoning": {"effort": "high"}},
        {"chat_template_kwargs": {"reasoning_effort": "high"}},
    ],
)
def test_a_reasoning_effort_needs_a_template_that_has_it(styled, asked):
    assert_refused(styled, chat(styled, **asked), "reasoning_effort is", "has none")


@pytest.mark.parametrize(
    "asked",
    [
        {"thinking": {"type": "enabled"}},
        {"reasoning": {"enabled": True}},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
def test_thinking_needs_a_template_that_has_it(styled, asked):
    assert_refused(styled, chat(styled, **asked), "thinking is asked for", "has none")


def test_a_template_may_have_an_effort_in_place_of_a_switch(checkpoint, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}{{ reasoning_effort or 'none' }}")
    routes = Routes(checkpoint, chat_template=template)
    for asked, effort in (
        ({}, "none"),
        ({"thinking": {"type": "enabled"}}, "high"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"reasoning": {"enabled": True, "effort": "low"}}, "low"),
        ({"reasoning": {"enabled": False, "effort": "low"}}, "none"),
    ):
        assert chat(routes, **asked).status_code == 200
        assert routes.prompt == f"Hi{effort}"


def test_a_template_may_have_a_switch_in_place_of_an_effort(checkpoint, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}{% if enable_thinking %}!{% endif %}")
    routes = Routes(checkpoint, chat_template=template)
    assert chat(routes, reasoning_effort="low").status_code == 200
    assert routes.prompt == "Hi!"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("option", "words"), [("fail", "Roles must alternate."), ("broken", "by zero")]
)
def test_a_template_that_refuses_is_a_400_that_says_why(styled, option, words, stream):
    refused = chat(styled, chat_template_kwargs={option: True}, stream=stream)
    assert_refused(styled, refused, "the chat template refuses these messages", words)


def test_a_model_without_a_template_says_so(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    edit(folder / "tokenizer_config.json", chat_template=None)
    routes = Routes(folder)
    assert_refused(routes, chat(routes), "no chat template", "/v1/completions")


def test_echo_keeps_off_the_prefix_cache(flagged):
    """Each such request has a salt of its own; others share."""
    salts = set()
    for _ in range(2):
        assert complete(flagged, [5], echo=True, logprobs=1).status_code == 200
        salts.add(flagged.context.cache_salt)
    assert len(salts) == 2
    assert None not in salts
    for body in ({"logprobs": 1}, {}):
        complete(flagged, [5], **body)
        assert flagged.context.cache_salt is None


def edit(path, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def load(folder, **flags):
    return Routes(folder, **flags).tokenizer


def test_a_tokenizer_beyond_the_model_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"'<pad>' with the id 320, but .* up to 319"):
        load(folder)


def test_a_model_with_a_padded_vocabulary(checkpoint, tmp_path):
    """Its padding may be sampled: that must not end the worker."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    edit(folder / "config.json", vocab_size=384)
    routes = Routes(folder)
    assert complete(routes, [383]).status_code == 200
    assert routes.context.vocab_size == 384
    routes.worker.answer = [70, 383, 71, EOS]
    response = routes.complete([5])
    assert response.json()["choices"][0]["text"] == "bc"
    assert_refused(routes, complete(routes, [384]), "token id 384")


def test_stop_tokens_that_the_model_cannot_emit_are_left_out(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    generation = {"eos_token_id": [2, 9, 4000], "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    routes = Routes(folder)
    assert routes.tokenizer.eos_token_ids == {2, 9}
    assert sampling(routes).stop_token_ids == [2, 9]
    assert routes.context.eos_tracker.eos_token_ids == {2, 9}
    # MAX has them for a request that names none; to ignore the end ignores them.
    assert sampling(routes, ignore_eos=True).stop_token_ids == [2, 9]
    assert routes.context.eos_tracker.eos_token_ids == set()


def test_a_folder_without_a_tokenizer_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="cannot load a tokenizer from"):
        load(folder)


def convert(kind, folder):
    """A checkpoint with a real tokenizer as Hugging Face has it, and no other."""
    write_model(kind, folder).unlink()
    return folder


def test_words_keep_their_spaces_one_token_at_a_time(tmp_path):
    """What MAX does for its own TextTokenizer of a sentencepiece vocabulary."""
    folder = convert("v3", tmp_path / "model")
    config = configure(folder)
    ours = load(folder)
    theirs = TextTokenizer(
        str(folder), config, max_length=256, enable_llama_whitespace_fix=True
    )

    def pieces(tokenizer):
        ids = asyncio.run(tokenizer.encode("One two  three", False))
        return [asyncio.run(tokenizer.decode(np.array([i]))) for i in ids]

    assert "".join(pieces(ours)).lstrip() == "One two  three"
    assert pieces(ours) == pieces(theirs)


TEXT = "Let's try 12345 DON'T  naïve façades\n\n  x"


def test_mistral_common_does_not_change_the_class(tmp_path):
    folder = convert("v3 tekken", tmp_path / "model")
    alone = AutoTokenizer.from_pretrained(folder).encode(TEXT)
    shutil.copy(tokenizer_file("v3 tekken"), folder / "tekken.json")
    # What the test is about: transformers alone would now take another.
    assert isinstance(AutoTokenizer.from_pretrained(folder), MistralCommonBackend)
    tokenizer = MistralTokenizer(str(folder), configure(folder))
    assert isinstance(tokenizer.delegate, PreTrainedTokenizerFast)
    assert tokenizer.delegate.encode(TEXT) == alone


# What transformers' own converter has as the default.
WRONG = MistralConverter().pattern
# It takes the first two signs for those of a word such as "can't".
QUOTED = "'The word'"


@pytest.mark.parametrize(
    ("pattern", "version", "mended"),
    [
        (WRONG, "4.57.1", True),
        # transformers takes what its version 5 saved to be right.
        (WRONG, "5.12.1", True),
        (r"\s+|\S", "5.12.1", False),
    ],
    ids=["old", "new", "of its own"],
)
def test_a_tokenizer_json_that_cuts_words_wrongly(tmp_path, pattern, version, mended):
    """As those of Mistral Small 3.1 do; tekken.json tells that it is one."""
    folder = convert("v3 tekken", tmp_path / "model")
    right = AutoTokenizer.from_pretrained(folder).encode(QUOTED)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cuts = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = version
    (folder / "config.json").write_text(json.dumps(config))
    wrong = tokenizer.encode(QUOTED).ids
    assert wrong != right
    shutil.copy(tokenizer_file("v3 tekken"), folder / "tekken.json")
    assert load(folder).delegate.encode(QUOTED) == (right if mended else wrong)
