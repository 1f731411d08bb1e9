"""Flags of MAX that change what a model computes, and that max_mistral has not."""

from __future__ import annotations

from max.pipelines.lib import MAXModelConfig, PipelineConfig

from .errors import UserError


def refuse_flags(pipeline_config: PipelineConfig) -> None:
    """Raises a ``UserError`` that names a flag, rather than to ignore it."""
    if pipeline_config.speculative is not None:
        raise UserError(
            "max_mistral does not support speculative decoding. Leave "
            "--speculative-method and --draft-model-path out."
        )
    thinking = pipeline_config.runtime.thinking_temperature
    if thinking is not None:
        raise UserError(
            f"--thinking-temperature is {thinking}, but thinking is sampled as the "
            "answer is. Leave it out."
        )
    model = pipeline_config.model
    if model.sliding_window is not None:
        raise UserError(
            f"--sliding-window is {model.sliding_window}, but max_mistral takes the "
            "window that the checkpoint was trained with. Leave it out, or set "
            "sliding_window in config.json."
        )
    if model.rope_type not in (None, "normal"):
        raise UserError(
            f"--rope-type is {model.rope_type}, but max_mistral knows how the weights "
            "lie. Leave it out."
        )
    if model.enable_echo and pipeline_config.sampling.enable_penalties:
        raise UserError(
            "--enable-echo does not go together with penalties (--enable-penalties, or "
            "a penalty in generation_config.json): MAX's sampler has none for a "
            "prompt's tokens. Leave one of them out."
        )
    refuse_devices(model)


def refuse_subfolder(model: MAXModelConfig) -> None:
    """Raises a ``UserError`` for ``--subfolder``, before its files are missed."""
    if model.subfolder is not None:
        raise UserError(
            f"--subfolder is {model.subfolder}, but max_mistral reads a checkpoint "
            f"from a folder of its own. Give {model.model_path}/{model.subfolder} as "
            "--model; from the Hub, download it first."
        )


def refuse_encoding(encoding: str) -> None:
    """Raises a ``UserError`` for one that weights which are not quantized have not."""
    if encoding not in ("float32", "bfloat16"):
        raise UserError(
            f"The encoding is {encoding}, as --quantization-encoding says or the name "
            "of a file or folder, but the checkpoint's config has no "
            "quantization_config; expected bfloat16 or float32. Set "
            "--quantization-encoding bfloat16, or on a CPU float32."
        )


def refuse_devices(model: MAXModelConfig) -> None:
    """Raises a ``UserError`` for ``--devices`` that the model cannot run on."""
    kinds = [spec.device_type for spec in model.device_specs]
    if "cpu" in kinds and len(kinds) > 1:
        raise UserError(
            f"--devices are {', '.join(kinds)}, but a model runs on one CPU or on "
            "GPUs. Leave the others out."
        )
    ggufs = [path for path in model.weight_path if path.suffix == ".gguf"]
    if ggufs and "gpu" in kinds:
        raise UserError(
            f"{ggufs[0]} is a GGUF file, which runs on the CPU alone, but the device "
            "is a GPU. Set --devices cpu, or take the model's safetensors for the GPU."
        )
