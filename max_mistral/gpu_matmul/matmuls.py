"""Which matmul a model runs: the first that is right on the GPU at hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from max.driver import Device, accelerator_api, is_virtual_device_mode
from max.engine import InferenceSession
from max.graph import default_custom_extensions_scope
from max.pipelines.lib import PipelineConfig

from .. import switches
from ..errors import UserError
from ..gpu import gpu_architecture
from ..gpu_kernels import library
from ..model_config import MistralConfig
from ..switches import chosen, is_on
from .cublas import INSTALL, load_cublas
from .products import Product, leaves_some_dense, products
from .self_check import MOST_ROWS, Wrong, head_rows, rows_to_try, wrong_products

logger = logging.getLogger("max.pipelines")

Matmul = Literal["MAX's own matmul", "the vendor's BLAS", "MAX's multistage GEMM"]
OWN: Matmul = "MAX's own matmul"
VENDOR: Matmul = "the vendor's BLAS"
MULTISTAGE: Matmul = "MAX's multistage GEMM"

# With these a user asks for what is not MAX's own.
_FLAGS = {
    VENDOR: "--use-vendor-blas true",
    MULTISTAGE: f"{switches.MATMUL}=multistage",
}
_KEEP = f"{switches.FP8}=keep"
# Found of cuBLAS.
_MISSING = f"is not installed ({INSTALL})"


def self_check_is_on() -> bool:
    """Whether the environment's ``MAX_MISTRAL_SELF_CHECK`` is ``on``, the default.

    Raises:
        UserError: (a ``ValueError``) if it is neither ``on`` nor ``off``.
    """
    return is_on(switches.SELF_CHECK)


def asked_for(
    config: MistralConfig, pipeline_config: PipelineConfig, device: Device
) -> Matmul:
    """Returns the matmul that the user asked for, MAX's own by default.

    Args:
        config: The model's; in FP8 it may need one.
        pipeline_config: Has MAX's flag, ``--use-vendor-blas``.
        device: One of those that the model will run on.

    Raises:
        UserError: (a ``ValueError``) if the environment's ``MAX_MISTRAL_MATMUL`` is
            neither ``max``, the default, nor ``multistage``, or that is asked for
            beside the flag, or for other than NVIDIA's GPUs.
    """
    found = chosen(switches.MATMUL, "max", "multistage")
    flag = pipeline_config.runtime.use_vendor_blas.lower()
    is_vendor = flag not in ("false", "off", "no", "0")
    if found == "max" and not config.needs_own_matmul:
        return VENDOR if is_vendor else OWN
    if is_vendor:
        other = _FLAGS[MULTISTAGE] if found == "multistage" else _KEEP
        raise UserError(
            f"{other} and {_FLAGS[VENDOR]} ask for two matmuls. Leave one of them out."
        )
    if device.is_host or accelerator_api() != "cuda":
        raise UserError(
            f"{_FLAGS[MULTISTAGE]} is for NVIDIA's GPUs, and the model is to run on "
            f"{'a CPU' if device.is_host else accelerator_api()}. Leave it out."
        )
    return MULTISTAGE


def use_right_matmul(
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    session: InferenceSession,
    device: Device,
    requests: int | None = None,
) -> list[Path]:
    """Has ``session`` compile what it loads from now on with a matmul that is right.

    On a GPU, MAX's own is tried at the model's shapes and, if it is wrong, others.
    Not on a CPU, nor where there is only a GPU's name to compile for.

    Args:
        config: The model's; need not be finalized.
        pipeline_config: What the user asked for.
        session: Compiles the model; nothing of it yet.
        device: One of those that it will run on.
        requests: On how many rows the head runs at most; ``None`` if it has none, or
            if they are not known.

    Returns:
        The kernels that the model's graphs must be traced with.

    Raises:
        UserError: (a ``ValueError``) if none is right.
    """
    checks = self_check_is_on()
    asked = matmul = asked_for(config, pipeline_config, device)
    if device.is_host or is_virtual_device_mode():
        return _libraries(asked, fp8=config.needs_own_matmul)
    if checks:
        matmul = _right(asked, config, pipeline_config, device, requests)
    if matmul is not asked and pipeline_config.runtime.precompiled_mefs:
        raise UserError(
            f"{OWN} is wrong on this GPU, and the graphs in --precompiled-mefs "
            f"were compiled with it. Compile them with {_FLAGS[matmul]} and "
            "start with that too, or leave --precompiled-mefs out."
        )
    return compile_with(matmul, session, fp8=config.needs_own_matmul)


def _right(
    asked: Matmul,
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    device: Device,
    requests: int | None,
) -> Matmul:
    """Returns the first matmul that is right, and says in the log what that means."""
    quantized = config.quantization is not None
    some_dense = quantized and leaves_some_dense(pipeline_config)
    every = products(config, some_dense=some_dense)
    if not every:
        logger.info(
            "The self-check has checked nothing: all products of this model are of "
            "quantized weights, on MAX's own kernels, which it does not know."
        )
        return asked
    start = time.perf_counter()
    choices = choices_for(asked, accelerator_api())
    # Of a step without a limit, as many as change MAX's choice.
    tokens = config.step_tokens or MOST_ROWS

    def finding(matmul: Matmul) -> str | None:
        return _finding(
            matmul, every, config, pipeline_config, device, tokens, requests
        )

    matmul = choose(choices, finding)
    left_out = quantized and not config.needs_own_matmul
    logger.info(
        "%s computes this model's products%s as it should on this GPU (%s), with "
        "1 to %d rows%s: checked in %.0f s.",
        matmul[0].upper() + matmul[1:],
        " (those of quantized weights are not checked)" if left_out else "",
        gpu_architecture(),
        rows_to_try(tokens, requests)[-1],
        "" if config.embeds else f" (the head with up to {head_rows(requests)})",
        time.perf_counter() - start,
    )
    return matmul


def compile_with(
    matmul: Matmul, session: InferenceSession, *, fp8: bool = False
) -> list[Path]:
    """Has ``session`` compile what it loads from now on with a matmul.

    Nothing takes that back.

    Args:
        matmul: Which.
        session: Compiles the model.
        fp8: Whether the multistage GEMM takes products in FP8 too.

    Returns:
        The kernels that the graphs must be traced with.
    """
    if matmul is VENDOR:
        if accelerator_api() == "cuda":
            load_cublas()
        session._use_vendor_blas("true")
    return _libraries(matmul, fp8=fp8)


def choices_for(asked: Matmul, api: str) -> list[Matmul]:
    """Returns the matmuls to try, in this order.

    Args:
        asked: What the user asked for.
        api: The GPUs', such as ``"cuda"``.
    """
    if asked is not OWN:
        return [asked]
    # AMD's BLAS ends the process where device graphs are captured, as MAX says.
    return [OWN, VENDOR, MULTISTAGE] if api == "cuda" else [OWN]


def _libraries(matmul: Matmul, *, fp8: bool) -> list[Path]:
    """Returns the kernels that take the place of MAX's own."""
    return [library(fp8=fp8)] if matmul is MULTISTAGE else []


def choose(
    matmuls: Sequence[Matmul], finding: Callable[[Matmul], str | None]
) -> Matmul:
    """Returns the first that nothing is found against; says in the log what was.

    Args:
        matmuls: In the order in which they are tried.
        finding: Returns what is wrong with one, or ``None``.

    Raises:
        UserError: (a ``ValueError``) with all findings, if none is right.
    """
    findings: list[str] = []
    for matmul in matmuls:
        found = finding(matmul)
        if found is None:
            if findings:
                logger.warning(
                    "%s; %s runs instead. See modular/modular #6883.",
                    "; ".join(findings),
                    matmul,
                )
            return matmul
        findings.append(f"{matmul} {found}")
    missing = f"{VENDOR} {_MISSING}" in findings
    mend = f"Install NVIDIA's cuBLAS ({INSTALL}), give" if missing else "Give"
    raise UserError(
        f"On this GPU ({gpu_architecture()}) this model's answers would be wrong: "
        f"{'; '.join(findings)}. See modular/modular #6883 and #7146. {mend} "
        "--quantization-encoding float32 or, of a checkpoint in FP8, leave "
        f"{_KEEP} out. {switches.SELF_CHECK}=off starts anyway, with wrong answers."
    )


def _finding(
    matmul: Matmul,
    every: Sequence[Product],
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    device: Device,
    tokens: int,
    requests: int | None,
) -> str | None:
    """Returns what is wrong with a matmul of these products on this device."""
    if matmul is VENDOR and accelerator_api() == "cuda" and load_cublas() is None:
        return _MISSING
    session = InferenceSession(devices=[device])
    pipeline_config.configure_session(session)
    try:
        libraries = compile_with(matmul, session, fp8=config.needs_own_matmul)
        with default_custom_extensions_scope(*libraries):
            wrong = wrong_products(
                session, device, every, config.dtype, tokens, requests
            )
    except Exception as error:
        if matmul is OWN:
            raise  # as the model would
        return f"does not run: {error}"
    return describe(wrong)


def describe(wrong: Sequence[Wrong]) -> str | None:
    """Returns what a message says of wrong products; ``None`` of none."""
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
    return f"gets {wrong[0]} wrong{more}"
