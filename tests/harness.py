"""What several tests need: weights, graphs for GPUs that are not there, tolerances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from max.graph.weights import WeightData, load_weights
from max.nn import kernels as max_kernels
from max.nn.transformer import ReturnLogits
from max.pipelines.lib import PipelineConfig

from max_mistral import MistralConfig, gpu
from max_mistral.build import build_graph
from max_mistral.data_parallel import DataParallelMistral
from max_mistral.mistral import Mistral
from max_mistral.weight_adapters import convert_safetensor_state_dict
from max_mistral.weights.stored import Stored
from workbench.virtual import use_real_devices, use_virtual_gpus

Array = npt.NDArray[np.float32]


def root_mean_square(x: npt.NDArray[Any]) -> float:
    """Of all its numbers."""
    return float(np.sqrt((x * x).mean()))


def load_safetensors(
    pipeline_config: PipelineConfig, **options: Any
) -> dict[str, WeightData]:
    """Returns a checkpoint's tensors as its graph gets them."""
    model = pipeline_config.model
    return convert_safetensor_state_dict(
        dict(load_weights(model.resolved_weight_paths()).items()),
        huggingface_config=model.huggingface_config,
        pipeline_config=pipeline_config,
        **options,
    )


@contextmanager
def virtual_gpus(architecture: str) -> Iterator[None]:
    """Eight of NVIDIA's GPUs to build a graph for, where there are none."""
    use_virtual_gpus(f"cuda:{architecture}", 8)
    # A process remembers the first architecture that it asked for.
    named = {"accelerator_architecture_name": lambda: architecture}
    try:
        with (
            patch.multiple(max_kernels, **named),
            patch.multiple(gpu, **named),
        ):
            yield
    finally:
        use_real_devices()


def build(
    pipeline_config: PipelineConfig,
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
) -> Mistral | DataParallelMistral:
    """Returns the graph's module with the checkpoint's weights in it."""
    weights = load_safetensors(pipeline_config)
    config = MistralConfig.initialize(pipeline_config)
    return build_graph(config.finalize(weights, return_logits), weights)


def store(data: Array, folder: Path) -> Stored:
    """Returns where bytes are, in a file of their own."""
    path = folder / f"{uuid4()}.bytes"
    data.tofile(path)
    return Stored(path, 0, data.nbytes)


def tolerance(config: dict[str, Any], logits: Array) -> float:
    """Returns the largest difference that float32 rounding explains.

    A dot product of K terms accumulates about sqrt(K) roundings of relative
    size eps; a decoder layer has seven such products in sequence or in
    parallel, the head one more, and each adds to the residual stream that the
    logits are read from.
    """
    eps = float(np.finfo(np.float32).eps)
    terms = max(config["hidden_size"], config["intermediate_size"])
    products = 7 * config["num_hidden_layers"] + 1
    return eps * np.sqrt(terms) * products * float(np.abs(logits).max())


def relative_error(got: Array, want: Array) -> float:
    """Returns the root mean square of the difference, relative to ``want``'s."""
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def rounding_error(config: dict[str, Any], unit: float) -> float:
    """Returns the largest :func:`relative_error` that rounding operands explains.

    Where what goes into a product is rounded to a unit roundoff far above
    float32's (2^-8 in bfloat16, 2^-11 in TF32) and summed up in float32, the
    number of terms does not matter: each product is off by about ``unit``, and
    the errors of all products, which are independent, add in squares. A score
    of attention turns a relative error into an absolute one before softmax
    takes its exponential; the seeded checkpoints' scores are near 4, for their
    Q and K have a gain of 2 each. Twice that is allowed: transformers in
    bfloat16 comes to 2 to 6 times ``unit`` x sqrt(products).
    """
    products = 7 * config["num_hidden_layers"] + 1
    return 8 * unit * float(np.sqrt(products))
