"""Embeddings against Hugging Face transformers, of batches of unequal lengths."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.harness import relative_error, rounding_error, tolerance
from tests.reference import EMBEDDINGS, TEXTS, embed, prompts
from workbench.checkpoints import (
    CONFIGS,
    make_tensors,
    write_checkpoint,
    write_gguf,
    write_headless,
)
from workbench.embedder import Embedder

CONFIG = CONFIGS["window"]
ROWS = prompts(TEXTS, CONFIG["vocab_size"])
# The longest text is as long as may be, and fills a step of its own.
FLAGS = {"max_length": 640, "max_batch_input_tokens": 640, "max_batch_size": 8}


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    folder = write_headless(tmp_path_factory.mktemp("headless"), CONFIG)
    return Embedder(folder, FLAGS)


def check(got, want):
    assert got.shape == (len(ROWS), CONFIG["hidden_size"])
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(CONFIG, want))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_a_model_without_a_head(headless):
    check(headless.embed(ROWS), np.load(EMBEDDINGS))


def test_live(headless, checkpoints):
    pytest.importorskip("torch", reason="the live reference needs torch")
    check(headless.embed(ROWS), embed(checkpoints["window"], ROWS))


def test_the_same_weights_with_a_head(checkpoints):
    check(Embedder(checkpoints["window"], FLAGS).embed(ROWS), np.load(EMBEDDINGS))


def test_nothing_is_kept_from_batch_to_batch(headless):
    """A text alone, in another order, and again."""
    want = np.load(EMBEDDINGS)
    check(headless.embed(ROWS[::-1])[::-1], want)
    check(np.concatenate([headless.embed([row]) for row in ROWS]), want)
    model = headless.pipeline._pipeline_model
    count = model.kv_manager.block_count()
    assert count.free == count.total


def test_more_texts_than_a_step_holds(headless):
    (one,) = headless.embed(ROWS[1:2])
    got = headless.embed(ROWS[1:2] * 8)
    atol = tolerance(CONFIG, one)
    np.testing.assert_allclose(got, np.tile(one, (8, 1)), rtol=0, atol=atol)


def test_keys_and_values_in_8_bits(checkpoints):
    flags = FLAGS | {"kv_cache_format": "float8_e4m3fn"}
    got, want = Embedder(checkpoints["window"], flags).embed(ROWS), np.load(EMBEDDINGS)
    error = relative_error(got, want)
    # Half a code, of 127.
    assert error <= rounding_error(CONFIG, 1 / 254)
    assert np.abs(got - want).max() > 3 * tolerance(CONFIG, want)


def test_gguf(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the reference needs torch")
    path = tmp_path / "m.Q8_0.gguf"
    tensors = write_gguf(path, CONFIG, GGMLQuantizationType.Q8_0)
    folder = write_checkpoint(tmp_path / "m", CONFIG, tensors=tensors)
    # Activations stay float32, as transformers has them.
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "exact")
    got = Embedder(folder, FLAGS | {"weight_path": [path]}).embed(ROWS)
    want = embed(folder, ROWS)
    check(got, want)
    # The file was read, and not the folder.
    assert np.abs(want - np.load(EMBEDDINGS)).max() > 3 * tolerance(CONFIG, want)


@pytest.mark.parametrize("window", [130, 132, None])
def test_the_tolerance_would_notice_another_window(tmp_path, window):
    pytest.importorskip("torch", reason="the wrong reference needs torch")
    wrong = CONFIG | {"sliding_window": window}
    folder = write_checkpoint(tmp_path, wrong, tensors=make_tensors(CONFIG))
    want = np.load(EMBEDDINGS)
    difference = np.abs(embed(folder, ROWS) - want).max()
    assert difference > 3 * tolerance(CONFIG, want)
