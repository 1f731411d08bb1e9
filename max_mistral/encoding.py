"""MAX's ``--quantization-encoding``, and the dtype that follows from it."""

from __future__ import annotations

from max.dtype import DType
from max.pipelines.lib import MAXModelConfig
from max.pipelines.lib.config.model_config import _select_quantization_encoding
from max.pipelines.modeling.config_enums import SupportedEncoding

# MAX falls back to this where a file's name says nothing it knows or, on a CPU,
# bfloat16: so a GGUF needs no --quantization-encoding.
DEFAULT_ENCODING: SupportedEncoding = "float32"
# q4_0 to q6_k are what MAX reads off the names of GGUF files; the tensors
# themselves say how they are encoded.
SUPPORTED_ENCODINGS: set[SupportedEncoding] = {
    "float32",
    "bfloat16",
    "q4_0",
    "q4_k",
    "q6_k",
    "float8_e4m3fn",
    "float4_e2m1fnx2",
    "gptq",
}


def resolved_encoding(model_config: MAXModelConfig) -> SupportedEncoding:
    """Returns the encoding that the user or MAX chose."""
    return _select_quantization_encoding(model_config, DEFAULT_ENCODING)


def activation_dtype(model_config: MAXModelConfig) -> DType:
    """Returns the dtype of activations, and of weights that are not packed."""
    return dtype_beside(resolved_encoding(model_config))


def dtype_beside(encoding: str) -> DType:
    """Returns the dtype of activations beside weights in ``encoding``."""
    narrow = ("bfloat16", "float8_e4m3fn", "float4_e2m1fnx2", "gptq")
    return DType.bfloat16 if encoding in narrow else DType.float32
