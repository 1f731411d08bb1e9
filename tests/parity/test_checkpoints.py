"""The same weights in every layout give the same logits.

They share the config of ``gqa``, and so its compiled graph and its golden.
"""

import json

import numpy as np
import pytest
from max.nn.transformer import ReturnLogits

from max_mistral import kernels
from max_mistral.prepare import prepare
from max_mistral.weights.names import TEXT_TOWERS, in_text_tower
from tests.harness import relative_error, rounding_error, tolerance
from tests.reference import CASES, Reference, prompts
from workbench.checkpoints import BASE, make_tensors, write_checkpoint, write_native
from workbench.runner import Runner


def write_vision_language(folder, tower):
    """A checkpoint with the text tower of ``gqa`` under the prefix ``tower``."""
    tensors = {
        in_text_tower(name, tower): tensor
        for name, tensor in make_tensors(BASE).items()
    }
    outer = "model." if tower.startswith("model.") else ""
    image = np.ones((2, 2), dtype=np.float32)
    tensors[f"{outer}vision_tower.patch_conv.weight"] = image
    tensors[f"{outer}multi_modal_projector.linear_1.weight"] = image
    write_checkpoint(folder, BASE, tensors=tensors)
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": {k: v for k, v in BASE.items() if k != "architectures"},
        "vision_config": {"model_type": "pixtral", "hidden_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(
    params=[*TEXT_TOWERS, "sharded", "wrongly tied", "native", "native sharded"]
)
def folder(request, tmp_path):
    if request.param.startswith("native"):
        shards = 3 if request.param.endswith("sharded") else 1
        prepare(write_native(tmp_path / "src", BASE, shards=shards), tmp_path / "dst")
        return tmp_path / "dst"
    if request.param in TEXT_TOWERS:
        write_vision_language(tmp_path, request.param)
    elif request.param == "sharded":
        write_checkpoint(tmp_path, BASE, shards=3)
    else:
        # The config says tied, but the checkpoint has a head of its own:
        # transformers keeps it, and so must we.
        wrong = BASE | {"tie_word_embeddings": True}
        write_checkpoint(tmp_path, wrong, tensors=make_tensors(BASE))
    return tmp_path


def test_every_layout_computes_the_same(folder):
    expected, case = Reference.load("gqa"), CASES["gqa"]
    tokens, logits = Runner(folder, ReturnLogits.ALL).generate(
        expected.prompts, case.steps
    )
    assert tokens == expected.tokens
    for got, want in zip(logits, expected.logits, strict=True):
        np.testing.assert_allclose(got, want[:-1], rtol=0, atol=tolerance(BASE, want))


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    """A bfloat16 checkpoint, prompts, and what the exact kernels make of them."""
    folder = write_checkpoint(tmp_path_factory.mktemp("x"), BASE, dtype="bfloat16")
    rows = prompts(CASES["gqa"], BASE["vocab_size"])
    steps = CASES["gqa"].steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAX_MISTRAL_KERNELS", "exact")
        return folder, rows, Runner(folder, ReturnLogits.ALL).generate(rows, steps)


def test_bfloat16_stays_two_bytes_and_computes_the_same(in_bfloat16, monkeypatch):
    """The kernels on packed bfloat16 against MAX's own operations in float32."""
    folder, rows, (tokens, logits) = in_bfloat16
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    stock = Runner(folder, ReturnLogits.ALL)
    stock_tokens, wanted = stock.generate(rows, CASES["gqa"].steps)
    assert tokens == stock_tokens
    for got, want in zip(logits, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(BASE, want))


@pytest.mark.skipif(not kernels.has_bfloat16(), reason="needs AVX512-BF16")
def test_activations_rounded_to_bfloat16_are_near(in_bfloat16):
    folder, rows, (tokens, exact) = in_bfloat16
    same = [row[len(prompt) :] for row, prompt in zip(tokens, rows, strict=True)]
    rounded = Runner(folder, ReturnLogits.ALL)
    _, logits = rounded.generate(rows, CASES["gqa"].steps, same)
    for got, want in zip(logits, exact, strict=True):
        # Rounded at all, and no further off than that explains.
        assert np.abs(got - want).max() > tolerance(BASE, want)
        assert relative_error(got, want) <= rounding_error(BASE, 2.0**-8)
