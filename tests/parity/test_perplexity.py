"""SmolLM2's perplexity of a book: against llama.cpp's, and of our own modes."""

import hashlib
import json

import numpy as np
import pytest
from max.nn.transformer import ReturnLogits
from transformers import AutoTokenizer

from max_mistral import kernels, switches
from workbench.demo import GGUF, write_bfloat16
from workbench.perplexity import GOLDEN, WINDOW, mean_nll, windows
from workbench.runner import Runner


def nlls(folder, **flags):
    """Returns the mean negative log-likelihood of each window."""
    flags = {"max_length": WINDOW + 1, "max_batch_size": 1} | flags
    runner = Runner(folder, ReturnLogits.ALL, flags)
    found = []
    for tokens in windows(AutoTokenizer.from_pretrained(folder)):
        _, (logits,) = runner.generate([tokens], 1)
        found.append(mean_nll(logits, tokens))
    return found


def test_it_is_within_half_a_percent_of_llama_cpps(demo_model):
    golden = json.loads(GOLDEN.read_text())
    assert hashlib.sha256(GGUF.read_bytes()).hexdigest() == golden["sha256"]
    # Both round activations to int8, each in its own way, so it cannot be equal.
    found = nlls(demo_model, weight_path=[GGUF])
    ratio = np.exp(np.mean(found) - np.mean(golden["mean_nll"]))
    assert abs(ratio - 1) < 0.005, (ratio, found, golden)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 in bfloat16; what is packed of it goes with the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(switches.KEEP_PACKED, "off")
        yield write_bfloat16(tmp_path_factory.mktemp("bfloat16") / "model")


@pytest.fixture(scope="module")
def exact(folder):
    """With nothing rounded, neither activations nor the KV cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAX_MISTRAL_KERNELS", "exact")
        return nlls(folder)


@pytest.mark.skipif(not kernels.has_bfloat16(), reason="needs AVX512-BF16")
def test_rounding_to_bfloat16_costs_less_than_a_thousandth(folder, exact):
    rounded = nlls(folder)
    assert rounded != exact
    ratio = np.exp(np.mean(rounded) - np.mean(exact))
    print(f"perplexity, rounded to exact: {ratio:.6f}")
    assert abs(ratio - 1) < 0.001, (ratio, rounded, exact)


@pytest.mark.parametrize("format_", ["bfloat16", "float8_e4m3fn"])
def test_a_smaller_kv_cache_costs_less_than_a_thousandth(
    folder, exact, monkeypatch, format_
):
    # Rounded activations multiply any small difference: a last bit of float32
    # changes the perplexity by a thousandth.
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "exact")
    found = nlls(folder, kv_cache_format=format_)
    assert found != exact
    ratio = np.exp(np.mean(found) - np.mean(exact))
    print(f"perplexity, KV cache in {format_} to float32: {ratio:.6f}")
    assert abs(ratio - 1) < 0.001, (ratio, found, exact)
