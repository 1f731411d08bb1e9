"""Which quantized checkpoints run, and how MAX is told.

They run on GPUs. ``quantization_config`` in ``config.json`` says how the
projections of the blocks are stored; embedding, norms and head are not
quantized. Sources: ``FineGrainedFP8Config`` of Hugging Face (``fp8``), the
compressed-tensors format of vLLM, AutoGPTQ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from max.driver import accelerator_architecture_name, accelerator_count
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.quantization import QuantizationConfig
from max.nn.quant_config import (
    InputScaleSpec,
    QuantConfig,
    QuantFormat,
    ScaleGranularity,
    ScaleOrigin,
    WeightScaleSpec,
)
from transformers import PretrainedConfig

from .errors import UserError
from .hf_config import text_config

BLOCK = 128
"""Side of an FP8 weight's blocks, and columns of a GPTQ weight's groups: what
MAX's kernels take."""


@dataclass(frozen=True)
class FP8:
    """Projections in ``float8_e4m3fn``, of which some may be left in bfloat16."""

    scales: Literal["tensor", "channel", "block"]
    """One scale for a weight, for a row of it, or for 128 x 128 of it."""
    static: bool
    """Whether the checkpoint has a scale for the activations too, one for a
    projection; if not, each token is scaled as it comes."""

    def quant_config(
        self, attention: Collection[int], mlp: Collection[int], *, fuse_mlp: bool
    ) -> QuantConfig:
        """Returns the same for ``max.nn``. All scales are float32.

        Args:
            attention: The layers whose attention is in FP8.
            mlp: The layers whose MLP is in FP8.
            fuse_mlp: Whether gate and up may run as one product.
        """
        if self.scales == "block":
            config = QuantConfig.blockscaled_fp8(
                mlp_quantized_layers=mlp,
                attn_quantized_layers=attention,
                block_size=BLOCK,
            )
            config.can_use_fused_mlp = fuse_mlp
            return config
        whole = self.scales == "tensor"
        return QuantConfig(
            input_scale=InputScaleSpec(
                # MAX pairs weights with one scale with activations with one,
                # and scales the latter by token all the same.
                ScaleGranularity.TENSOR if whole else ScaleGranularity.COLWISE,
                ScaleOrigin.STATIC if self.static else ScaleOrigin.DYNAMIC,
                DType.float32,
            ),
            weight_scale=WeightScaleSpec(
                ScaleGranularity.TENSOR if whole else ScaleGranularity.ROWWISE,
                DType.float32,
            ),
            mlp_quantized_layers=set(mlp),
            attn_quantized_layers=set(attention),
            format=QuantFormat.COMPRESSED_TENSORS_FP8,
            can_use_fused_mlp=fuse_mlp,
        )


# MAX's own; its name says as much of FP8.
GPTQ = QuantizationConfig
Quantization = FP8 | GPTQ


def gpu_architecture() -> str | None:
    """Returns the GPUs' architecture, such as ``sm_90a``; ``None`` without GPUs."""
    return accelerator_architecture_name() if accelerator_count() else None


def lacks_scaled_product() -> bool:
    """Whether MAX's FP8 products do not compile for these GPUs, but for blocks.

    On Hopper in 26.7 its kernel for a product with a scale a tensor or a row
    stops with "static coordinate 2 is out of bounds" (``tile_writer.mojo``).
    """
    return (gpu_architecture() or "").startswith("sm_90")


def read_quantization(config: PretrainedConfig) -> Quantization | None:
    """Returns how the checkpoint is quantized; ``None`` if it is not.

    Args:
        config: The whole HF config.

    Raises:
        UserError: (a ``ValueError``) naming the method, or the value of it,
            that does not run.
    """
    for part in (config, text_config(config)):
        found = getattr(part, "quantization_config", None)
        if not found:
            continue
        method = found.get("quant_method", "unknown")
        if method not in _READERS:
            _refuse("quant_method", method, " and ".join(map(repr, _READERS)))
        return _READERS[method](found)
    return None


def check_runs(
    quantization: Quantization, devices: Sequence[DeviceRef], dtype: DType
) -> None:
    """Raises a ``UserError`` if a quantized checkpoint cannot run as asked.

    Args:
        quantization: How it is quantized.
        devices: Where it is to run.
        dtype: Of the activations.
    """
    gptq = isinstance(quantization, GPTQ)
    name, encoding = ("GPTQ", "gptq") if gptq else ("FP8", "float8_e4m3fn")
    if any(device.is_cpu() for device in devices):
        raise UserError(
            f"The checkpoint is quantized in {name}, which runs on GPUs only. Name "
            "one (--devices gpu:0); on a CPU run the model's bfloat16 checkpoint or "
            "a GGUF file of it."
        )
    if dtype != DType.bfloat16:
        raise UserError(
            f"The checkpoint is quantized in {name}, but the activations would be "
            f"{dtype.name}. Set --quantization-encoding {encoding}."
        )
    if gptq and len(devices) > 1:
        raise UserError(
            f"The checkpoint is quantized in GPTQ, which runs on one GPU, not on "
            f"{len(devices)}. Name one in --devices."
        )


def _fp8(found: dict[str, Any]) -> FP8:
    block = found.get("weight_block_size")
    if block is not None and list(block) != [BLOCK, BLOCK]:
        _refuse("weight_block_size", block, f"[{BLOCK}, {BLOCK}] and null")
    scheme = found.get("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic") or (block and scheme == "static"):
        expected = "'dynamic' with weight_block_size, else 'static' too"
        _refuse("activation_scheme", scheme, expected)
    return FP8("block" if block else "tensor", scheme == "static")


def _compressed_tensors(found: dict[str, Any]) -> FP8:
    groups = list(found.get("config_groups", {}).values())
    if len(groups) != 1:
        _refuse("config_groups of length", len(groups), "one group")
    weights = groups[0].get("weights") or {}
    inputs = groups[0].get("input_activations") or {}
    for name, part in (("weights", weights), ("input_activations", inputs)):
        kind = part.get("num_bits"), part.get("type")
        if kind != (8, "float"):
            _refuse(f"{name} of (num_bits, type)", kind, "(8, 'float')")
    static = not inputs.get("dynamic")
    scales: Any = weights.get("strategy")
    if scales not in ("tensor", "channel"):
        _refuse("the strategy of weights", scales, "'tensor' and 'channel'")
    strategy = inputs.get("strategy")
    if strategy not in ("tensor", "token") or static != (strategy == "tensor"):
        expected = "'token' if dynamic, 'tensor' if not"
        _refuse("the strategy of input_activations", strategy, expected)
    if static and scales == "channel":
        _refuse("the strategy of weights", scales, "'tensor' with static activations")
    return FP8(scales, static)


def _gptq(found: dict[str, Any]) -> GPTQ:
    expected = {"bits": 4, "group_size": BLOCK, "sym": True}
    for key, value in expected.items():
        if found.get(key) != value:
            _refuse(key, found.get(key), repr(value))
    if found.get("checkpoint_format", "gptq") != "gptq":
        _refuse("checkpoint_format", found["checkpoint_format"], "'gptq'")
    return GPTQ(
        quant_method="gptq",
        bits=4,
        group_size=BLOCK,
        desc_act=bool(found.get("desc_act", False)),
        sym=True,
    )


_READERS: dict[str, Callable[[dict[str, Any]], Quantization]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
}


def _refuse(key: str, found: object, expected: str) -> None:
    raise UserError(
        f"quantization_config of config.json has {key} = {found!r}; max_mistral "
        f"supports {expected}."
    )
