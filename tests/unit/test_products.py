"""Which products of a model the self-check of GPUs computes."""

from dataclasses import replace

import pytest
from max.driver import DeviceSpec

from benchmarks import matmul
from max_mistral import MistralConfig
from max_mistral.gpu_matmul.products import (
    Product,
    block_products,
    leaves_some_dense,
    products,
)
from max_mistral.layers.block import carries_delta
from tests.harness import virtual_gpus
from workbench.checkpoints import BASE, write_checkpoint
from workbench.quantized import CONFIG, LAYOUTS, pipeline, write_quantized
from workbench.runner import make_pipeline_config


def config_of(folder, devices=1, encoding="bfloat16"):
    return MistralConfig.initialize(
        make_pipeline_config(
            folder,
            device_specs=[DeviceSpec.accelerator(i) for i in range(devices)],
            quantization_encoding=encoding,
            weight_path=[folder / "model.safetensors"],
        )
    )


def test_the_products_of_a_model(tmp_path):
    wide = BASE | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    write_checkpoint(tmp_path, wide, dtype="bfloat16")
    hidden, mlp, vocabulary = (
        wide[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    config = config_of(tmp_path)
    # So that nothing is added to what o_proj and down_proj give before the next norm.
    assert carries_delta(config)
    assert products(config) == [
        Product(vocabulary, hidden, "float32", is_head=True),
        Product((8 + 2 + 2) * 64, hidden),
        Product(hidden, 8 * 64),
        Product(2 * mlp, hidden, "swiglu"),
        Product(hidden, mlp),
    ]
    # So that a step of scripts/check_gpu.py compiles it for the model's start, too.
    assert matmul.products(wide) == products(config)
    # On four devices each key-value head is there twice. Logits are cast when they
    # are gathered.
    assert products(config_of(tmp_path, devices=4)) == [
        Product(-(-vocabulary // 4), hidden, is_head=True),
        Product((2 + 1 + 1) * 64, hidden),
        Product(hidden, 2 * 64),
        Product(2 * (mlp // 4), hidden, "swiglu"),
        Product(hidden, mlp // 4),
    ]


def test_of_parts_that_are_not_equal_both(tmp_path):
    write_checkpoint(tmp_path, BASE | {"vocab_size": 321}, dtype="bfloat16")
    config = replace(config_of(tmp_path, devices=2), feed_forward_length=155)
    found = products(config)
    assert [product.columns for product in found if product.is_head] == [161, 160]
    assert [p.columns for p in found if p.then == "swiglu"] == [2 * 78, 2 * 77]
    assert {78, 77} < {product.terms for product in found}


def test_of_a_model_that_embeds_no_head(tmp_path):
    write_checkpoint(tmp_path, BASE, dtype="bfloat16")
    config = config_of(tmp_path)
    _, *rest = products(config)
    assert products(replace(config, embeds=True)) == rest


BLOCK = {
    "hidden": CONFIG["hidden_size"],
    "wide": CONFIG["intermediate_size"],
    "queries": CONFIG["num_attention_heads"] * CONFIG["head_dim"],
    "keys": CONFIG["num_key_value_heads"] * CONFIG["head_dim"],
}
HEAD = Product(CONFIG["vocab_size"], CONFIG["hidden_size"], "float32", is_head=True)


@pytest.mark.parametrize(
    "name", ["block", "channel", "native", "nvfp4", "modelopt_nvfp4"]
)
def test_of_a_quantized_model_the_head_and_what_is_not_quantized(tmp_path, name):
    for dense in (False, True):
        folder = tmp_path / str(dense)
        write_quantized(
            folder, LAYOUTS[name], dense=lambda n, d=dense: d and "layers.1.mlp" in n
        )
        with virtual_gpus("sm_100a"):
            pipeline_config = pipeline(folder)
            assert leaves_some_dense(pipeline_config) == dense
            config = MistralConfig.initialize(pipeline_config)
            assert config.quantization is not None
            found = products(config, some_dense=dense)
        assert found == [HEAD, *(block_products(**BLOCK) if dense else [])]


@pytest.mark.parametrize("name", ["channel", "static"])
@pytest.mark.parametrize("dense", [False, True])
def test_of_a_model_kept_in_fp8_its_products_in_fp8(tmp_path, monkeypatch, name, dense):
    write_quantized(tmp_path, LAYOUTS[name])
    monkeypatch.setenv("MAX_MISTRAL_FP8", "keep")
    with virtual_gpus("sm_90a"):
        config = config_of(tmp_path, encoding="float8_e4m3fn")
        head, *block = products(config, some_dense=dense)
    assert head == HEAD
    if dense:
        assert block[:4] == block_products(**BLOCK)
        block = block[4:]
    assert all(product.fp8 for product in block)
    hidden, wide, queries = (BLOCK[key] for key in ("hidden", "wide", "queries"))
    shapes = [(queries + 2 * BLOCK["keys"], hidden), (hidden, queries)]
    # Gate and up with one scale, and with two.
    shapes += [(2 * wide, hidden), *([(wide, hidden)] if name == "static" else [])]
    shapes += [(hidden, wide)]
    assert [(product.columns, product.terms) for product in block] == shapes
    # Q, K and V have a scale for each row, even where others have one.
    statics = [product.static for product in block]
    assert statics == [False, *[name == "static"] * (len(block) - 1)]
