"""What a model's own files say of how it runs: its config, device and encoding."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from max.driver import DeviceSpec, accelerator_count
from max.dtype import DType
from max.graph import DeviceRef
from max.pipelines.lib.device_specs import (
    device_specs_from_normalized_device_handle,
    normalize_device_specs_input,
)
from max.pipelines.modeling.config_enums import (
    parse_supported_encoding_from_file_name as encoding_of_name,
)
from transformers import AutoConfig, PretrainedConfig

from .. import hf_config as hf
from ..arch import ARCHITECTURES
from ..errors import UserError, shown
from ..fields import read_json
from ..formats import GPTQ
from ..hf_quantization import read_quantization
from ..other_models import refuse_other_models
from ..weights.safetensors_file import UNSOUGHT, read_tensors
from .checkpoint import Checkpoint
from .errors import UsageError
from .flags import Flags
from .memory import on_cpu

# ``get_weight_paths`` of MAX's ``weights/hf_utils.py``.
_PASSED_OVER = re.compile(r"consolidated|/checkpoint-\d+/")


def read_config(folder: Path) -> PretrainedConfig:
    """Returns the config of a model that runs.

    Raises:
        UserError: (a ``ValueError``) if ``config.json`` is damaged, of another model,
            or asks for what this package cannot compute.
    """
    path = folder / "config.json"
    raw = read_json(path)
    towers = (raw, raw.get("text_config"))
    parts = [part.get for part in towers if isinstance(part, dict)]
    refuse_other_models(str(path), *parts)
    names = raw.get("architectures")
    known = list(dict.fromkeys(arch.name for arch in ARCHITECTURES))
    if not isinstance(names, list) or not any(name in known for name in names):
        raise UserError(
            f"{path} has architectures = {shown(names)}; max_mistral runs "
            f"{', '.join(known)}. Another may run with max alone."
        )
    hf.check_raw(str(path), raw)
    hf.check_required_keys(str(folder), None)
    try:
        # Left open, it asks at the terminal about a checkpoint's own Python.
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:  # transformers has no narrower one
        raise UserError(
            f"{path} cannot be read by transformers ({error}). Copy the file that "
            "belongs to the checkpoint."
        ) from error
    hf.check_supported(hf.text_config(config))
    return config


def check_quantization(config: PretrainedConfig) -> None:
    """Raises a ``UserError`` for a format that does not run on a CPU."""
    quantization = read_quantization(config, None)
    if quantization is not None:
        quantization.check_runs([DeviceRef.CPU()], DType.float32)


def pick_device(flags: Flags, *, gguf: bool) -> str:
    """Returns ``--devices``, by default the first GPU, or the CPU.

    Raises:
        UsageError: If it is a GPU for a GGUF file, or none that MAX knows.
    """
    given = flags.value("--devices")
    if not given:
        return "gpu:0" if accelerator_count() and not gguf else "cpu"
    # On a GPU no kernel reads GGUF's encodings.
    if gguf and not on_cpu(read_devices(given)):
        raise UsageError(
            f"--devices is {shown(given)}, but a GGUF file runs on the CPU alone. "
            "Leave --devices out, or take the model's safetensors for the GPU."
        )
    return given


def read_devices(devices: str) -> list[DeviceSpec]:
    """Returns what ``--devices`` names; raises a ``UsageError`` if MAX cannot say."""
    try:
        handle = normalize_device_specs_input(devices)
        return device_specs_from_normalized_device_handle(handle)
    except ValueError as error:
        raise UsageError(f"--devices is {shown(devices)}: {error}") from error


def pick_encoding(
    checkpoint: Checkpoint, config: PretrainedConfig, devices: list[DeviceSpec]
) -> tuple[tuple[Path, ...], str | None]:
    """The files to name with --weight-path, and the encoding; MAX finds the others."""
    if checkpoint.is_gguf:
        return checkpoint.weights, None
    # Or raises, for a file that is damaged.
    dtypes = {tensor.dtype for tensor in read_tensors(checkpoint.weights).values()}
    beside = _finds_others(checkpoint)
    if on_cpu(devices):
        check_quantization(config)
    elif (quantization := read_quantization(config, None)) is not None:
        if beside:
            return checkpoint.weights, quantization.ENCODING
        return (), "gptq" if isinstance(quantization, GPTQ) else None
    named = checkpoint.weights if beside or UNSOUGHT & dtypes else ()
    return named, "float32" if on_cpu(devices) else "bfloat16"


def is_left_to_max(weights: tuple[Path, ...], encoding: str | None) -> bool:
    """Whether ``--quantization-encoding`` has to be left out for MAX to take this one.

    Of files that are named it believes the first one's name: where that says float32
    it takes bfloat16 on a GPU by itself, but float32 if bfloat16 is asked for.
    """
    said = encoding_of_name(weights[0].name) if weights else None
    return (said, encoding) == ("float32", "bfloat16")


def _finds_others(checkpoint: Checkpoint) -> bool:
    """Whether MAX, left to itself, would load other files than the checkpoint's.

    It takes all ``*.safetensors`` below the folder, an adapter's too, or none where a
    ``[`` in its path makes a pattern of it. Files are named only then: MAX believes
    the names of such files, and has no bfloat16 on a CPU.
    """
    if checkpoint.prepare:
        return False  # MAX is given a folder of ours
    pattern = f"{checkpoint.path}/**/*.safetensors"
    found = {Path(name) for name in glob.glob(pattern, recursive=True)}
    if len(found) > 1:
        # Of several it passes over Mistral's own files, and a training's.
        found = {path for path in found if not _PASSED_OVER.search(str(path))}
    return found != set(checkpoint.weights)
