"""What ``quantization_config`` of a checkpoint asks for.

Sources: ``FineGrainedFP8Config`` of Hugging Face (``fp8``), the
compressed-tensors format of vLLM, AutoGPTQ, NVIDIA's ModelOpt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from max.nn.quant_config import NVFP4_BLOCK_SIZE
from max.pipelines.modeling.config_enums import SupportedEncoding
from transformers import PretrainedConfig

from .errors import UserError, shown
from .fields import Fields, read_json
from .formats import FP8, GPTQ, NVFP4, WeightFormat
from .formats.base import BLOCK
from .hf_config import text_config
from .hf_files import find_file


def read_quantization(
    config: PretrainedConfig, encoding: SupportedEncoding | None
) -> WeightFormat | None:
    """Returns how the checkpoint is quantized; ``None`` if it is not.

    Args:
        config: The whole HF config.
        encoding: As MAX resolved it. If it is one of ModelOpt's, or the
            checkpoint is a folder, its ``hf_quant_config.json`` counts too.

    Raises:
        UserError: (a ``ValueError``) naming the method, or the value of it,
            that does not run.
    """
    parts = (config, text_config(config))
    configs = [getattr(part, "quantization_config", None) for part in parts]
    # For any other, the Hub would be asked in vain.
    modelopt = encoding in ("float8_e4m3fn", "float4_e2m1fnx2")
    source = config._name_or_path  # "" of a config that is made, not read
    if source and (modelopt or Path(source).is_dir()) and not any(configs):
        revision = getattr(config, "_commit_hash", None)
        path = find_file(source, "hf_quant_config.json", revision)
        if path is not None:
            configs.append(_modelopts_file(path))
    found = next(filter(None, configs), None)
    if found is None:
        return None
    if not isinstance(found, dict):
        _refuse("not an object but", found, "one")
    # ModelOpt's own file in config.json has the producer's name only.
    method = found.get("quant_method") or _part(found, "producer").get("name")
    if not isinstance(method, str) or method not in _READERS:
        _refuse("quant_method", method, " and ".join(map(repr, _READERS)))
    return _READERS[method](found)


def _modelopts_file(path: Path) -> dict[str, Any]:
    """What a ``hf_quant_config.json`` holds, with all that says how to read it."""
    found = read_json(path)
    file = Fields(str(path), found.get)
    file.fields("producer").string("name")
    file.fields("quantization").string("quant_algo")
    return found


def _part(found: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within; empty where there is none."""
    part = found.get(key) or {}
    if not isinstance(part, dict):
        _refuse(key, part, "an object")
    return part


def _fp8(found: dict[str, Any]) -> FP8:
    block = found.get("weight_block_size")
    if block is not None and block not in ([BLOCK, BLOCK], (BLOCK, BLOCK)):
        _refuse("weight_block_size", block, f"[{BLOCK}, {BLOCK}] and null")
    scheme = found.get("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic") or (block and scheme == "static"):
        expected = "'dynamic' with weight_block_size, else 'static' too"
        _refuse("activation_scheme", scheme, expected)
    return FP8("block" if block else "tensor", scheme == "static")


def _compressed_tensors(found: dict[str, Any]) -> FP8 | NVFP4:
    transforms = _part(_part(found, "transform_config"), "config_groups")
    for name in transforms:
        places = _part(transforms, name).get("apply", [])
        for place in places if isinstance(places, list) else [places]:
            location = place.get("location") if isinstance(place, dict) else place
            # Those of weights are in the weights already.
            if not isinstance(location, str) or not location.startswith("weight_"):
                expected = "'weight_input' and 'weight_output'"
                _refuse("transform_config at", location, expected)
    groups = list(_part(found, "config_groups").values())
    if len(groups) != 1 or not isinstance(groups[0], dict):
        _refuse("config_groups", found.get("config_groups"), "one group with weights")
    weights = _part(groups[0], "weights")
    inputs = _part(groups[0], "input_activations")
    if not inputs:
        _refuse("input_activations", None, "quantized activations, not weights alone")
    kinds = []
    for name, part in (("weights", weights), ("input_activations", inputs)):
        kinds.append((part.get("num_bits"), part.get("type")))
        if kinds[-1] not in ((8, "float"), (4, "float")) or kinds[-1] != kinds[0]:
            expected = "(8, 'float') or (4, 'float'), the same for both"
            _refuse(f"{name} of (num_bits, type)", kinds[-1], expected)
    if kinds[0] == (4, "float"):
        return _compressed_nvfp4(weights, inputs)
    static = not _flag(inputs, "dynamic")
    scales: Any = weights.get("strategy")
    if scales not in ("tensor", "channel", "block"):
        _refuse("the strategy of weights", scales, "'tensor', 'channel' and 'block'")
    if scales == "block":
        return _compressed_blocks(weights, inputs, static)
    strategy = inputs.get("strategy")
    if strategy not in ("tensor", "token") or static != (strategy == "tensor"):
        expected = "'token' if dynamic, 'tensor' if not"
        _refuse("the strategy of input_activations", strategy, expected)
    if static and scales == "channel":
        _refuse("the strategy of weights", scales, "'tensor' with static activations")
    return FP8(scales, static)


def _compressed_blocks(
    weights: dict[str, Any], inputs: dict[str, Any], static: bool
) -> FP8:
    """Those of llm-compressor's ``FP8_BLOCK``."""
    block = weights.get("block_structure")
    # Earlier versions wrote text.
    if block not in ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}"):
        _refuse("block_structure of weights", block, f"[{BLOCK}, {BLOCK}]")
    kind = inputs.get("strategy"), inputs.get("group_size")
    if kind != ("group", BLOCK):
        expected = f"('group', {BLOCK}) with weights in blocks"
        _refuse("input_activations of (strategy, group_size)", kind, expected)
    if static:
        expected = "true with weights in blocks"
        _refuse("dynamic of input_activations", inputs.get("dynamic"), expected)
    return FP8("block", static=False)


def _compressed_nvfp4(weights: dict[str, Any], inputs: dict[str, Any]) -> NVFP4:
    expected = "tensor_group", NVFP4_BLOCK_SIZE
    for name, part in (("weights", weights), ("input_activations", inputs)):
        kind = part.get("strategy"), part.get("group_size")
        if kind != expected:
            _refuse(f"{name} of (strategy, group_size)", kind, repr(expected))
    # Activations: one scale per 16 columns, made as they come, and a stored one.
    if inputs.get("dynamic") not in ("local", False):
        _refuse("dynamic of input_activations", inputs.get("dynamic"), "'local'")
    return NVFP4(compressed=True)


def _gptq(found: dict[str, Any]) -> GPTQ:
    expected = {"bits": 4, "group_size": BLOCK, "sym": True}
    for key, value in expected.items():
        # 1 equals True.
        if found.get(key) != value or type(found[key]) is not type(value):
            _refuse(key, found.get(key), repr(value))
    if found.get("checkpoint_format", "gptq") != "gptq":
        _refuse("checkpoint_format", found["checkpoint_format"], "'gptq'")
    return GPTQ(desc_act=_flag(found, "desc_act"))


def _modelopt(found: dict[str, Any]) -> FP8 | NVFP4:
    found = _part(found, "quantization") or found
    algorithm = found.get("quant_algo")
    if algorithm == "FP8":
        return FP8("tensor", static=True)
    if algorithm != "NVFP4":
        _refuse("quant_algo", algorithm, "'FP8' and 'NVFP4'")
    if found.get("group_size", NVFP4_BLOCK_SIZE) != NVFP4_BLOCK_SIZE:
        _refuse("group_size", found["group_size"], str(NVFP4_BLOCK_SIZE))
    return NVFP4(compressed=False)


def _flag(found: dict[str, Any], key: str) -> bool:
    value = found.get(key) or False
    if not isinstance(value, bool):
        _refuse(key, value, "true and false")
    return value


_READERS: dict[str, Callable[[dict[str, Any]], WeightFormat]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "modelopt": _modelopt,
}


def _refuse(key: str, found: object, expected: str) -> NoReturn:
    raise UserError(
        f"quantization_config of the checkpoint has {key} = {shown(found)}; "
        f"max_mistral supports {expected}. Take the model's bfloat16 checkpoint, or a "
        "GGUF file on a CPU."
    )
