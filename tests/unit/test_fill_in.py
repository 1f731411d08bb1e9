"""``suffix``: fill-in-the-middle prompts, against mistral-common's own."""

import json
import shutil

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from tests.routes import EOS, Routes
from workbench.tokenizers import BUNDLED

# And of those that are made of a bundled one, the newest.
WITH_FIM = [*(kind for kind in BUNDLED if kind not in ("v1", "v2")), "v15 tekken"]
TEXTS = [
    ("def f(a):\n    return ", "\n\nprint(f(3))"),
    ("x = ", " + 1"),
    ("x =", "+ 1"),
    ("", ")"),
    ("naïve — 日本語 🎉 ", "  façades\t\t☺☺"),
    ("", ""),
    ("a [PREFIX] </s> [INST]", "[SUFFIX]b<s>[MIDDLE] "),
    ("\n\n  ", "\n"),
    ("half \ud83d", "\udc00 a pair"),
]


@pytest.fixture(scope="module", params=WITH_FIM)
def model(request, real_model, tmp_path_factory):
    """mistral-common's tokenizer, and routes with its file and without."""
    file = real_model(request.param)
    folders = file.parent, without(file, tmp_path_factory.mktemp("model"))
    routes = [Routes(folder, max_length=512) for folder in folders]
    return MistralTokenizer.from_file(file), *routes


def without(file, folder):
    """Copies a checkpoint but for Mistral's own file."""
    shutil.copytree(file.parent, folder / "m", ignore=lambda *_: [file.name])
    return folder / "m"


def expected(own, prompt, suffix):
    prompt, suffix = (
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for text in (prompt, suffix)
    )
    return own.encode_fim(FIMRequest(prompt=prompt, suffix=suffix)).tokens


@pytest.mark.parametrize(("prompt", "suffix"), TEXTS)
def test_ids_are_those_of_mistral_common(model, prompt, suffix):
    own, *servers = model
    want = expected(own, prompt, suffix)
    assert len(want) >= 3
    for routes in servers:
        assert routes.complete(prompt, suffix=suffix).status_code == 200
        assert routes.prompt_ids == want


def test_without_a_suffix_it_is_a_plain_prompt(model):
    for routes in model[1:]:
        routes.complete("x = ")
        plain = routes.prompt_ids
        routes.complete("x = ", suffix=None)
        assert routes.prompt_ids == plain
        routes.complete("x = ", suffix="")
        assert routes.prompt_ids != plain


@pytest.fixture(scope="module")
def codestral(real_model):
    """Of Codestral's version."""
    return Routes(real_model("v3").parent)


def test_streamed_and_not(codestral):
    codestral.worker.answer = [*codestral.ids("a, b"), EOS]
    answer = codestral.complete("f(", suffix=")")
    assert answer.json()["choices"][0]["text"] == " a, b"
    ids = codestral.prompt_ids
    stream = codestral.complete("f(", suffix=")", stream=True)
    parts = [line[5:] for line in stream.text.splitlines() if line.startswith("data:")]
    choices = [c for part in parts[:-1] for c in json.loads(part)["choices"]]
    assert "".join(choice["text"] for choice in choices) == " a, b"
    assert codestral.prompt_ids == ids


def test_each_of_several_prompts_gets_the_suffix(codestral):
    answer = codestral.complete(["f(", "g("], suffix=")", return_token_ids=True)
    found = [choice["prompt_token_ids"] for choice in answer.json()["choices"]]
    want = []
    for prompt in ("f(", "g("):
        codestral.complete(prompt, suffix=")")
        want.append(codestral.prompt_ids)
    assert found == want


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": [5, 6]}, "suffix needs a prompt of text, not of token ids"),
        ({"prompt": [[5, 6]]}, "suffix needs a prompt of text, not of token ids"),
        ({"prompt": "word " * 300}, "length of 256 tokens"),
        ({"prompt": []}, "prompt is empty"),
    ],
)
def test_prompts_that_are_refused(codestral, body, words, stream):
    refused = codestral.complete(suffix=")", stream=stream, **body)
    assert refused.status_code == 400
    assert words in refused.text
    assert codestral.context is None


def test_a_suffix_that_is_too_long_is_not_encoded_for_each_prompt(
    codestral, monkeypatch
):
    encode, encoded = codestral.tokenizer.encode_fim, []

    def encode_fim(prompt, suffix):
        encoded.append(prompt)
        return encode(prompt, suffix)

    monkeypatch.setattr(codestral.tokenizer, "encode_fim", encode_fim)
    refused = codestral.complete(["x"] * 50, suffix="1" * 1000)
    assert refused.status_code == 400
    assert "length of 256 tokens" in refused.json()["detail"]
    assert encoded == ["x"]
    monkeypatch.setattr("max_mistral.server.suffix.MOST_CHARACTERS", 100)
    refused = codestral.complete(["y"] * 10, suffix="1" * 11)
    assert refused.status_code == 400
    said = "suffix has 11 characters for each of 10 prompts"
    assert refused.json()["detail"].startswith(said)
    assert encoded == ["x"]
    # One prompt is held against the model alone.
    assert codestral.complete(["z"], suffix="1" * 101).status_code == 200
    assert encoded == ["x", "z"]


def test_echo_is_refused(real_model):
    routes = Routes(real_model("v3").parent, enable_echo=True)
    refused = routes.complete("f(", suffix=")", echo=True, logprobs=1)
    assert "suffix and echo do not go together" in refused.json()["detail"]


@pytest.mark.parametrize("kind", ["v1", "v2"])
@pytest.mark.parametrize("with_file", [True, False])
def test_a_tokenizer_that_has_no_tokens_for_it(real_model, tmp_path, kind, with_file):
    file = real_model(kind)
    routes = Routes(file.parent if with_file else without(file, tmp_path))
    refused = routes.complete("f(", suffix=")")
    assert refused.status_code == 400
    detail = refused.json()["detail"]
    assert detail.startswith("suffix needs a model that fills in")
    assert "m has no tokens [PREFIX] and [SUFFIX]" in detail


def test_a_template_of_the_user_changes_nothing(codestral, real_model, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    folder = real_model("v3").parent
    routes = Routes(folder, chat_template=tmp_path / "t.jinja")
    for server in (codestral, routes):
        server.complete("def f(", suffix=" return")
    assert routes.prompt_ids == codestral.prompt_ids
