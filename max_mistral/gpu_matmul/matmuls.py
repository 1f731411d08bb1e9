"""Which matmul a model runs: the first that is right on the GPU at hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from max.driver import Device, accelerator_api, is_virtual_device_mode
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import default_custom_extensions_scope
from max.pipelines.lib import PipelineConfig

from .. import switches
from ..errors import UserError
from ..gpu import gpu_architecture
from ..gpu_kernels import library
from ..model_config import MistralConfig
from .asked import (
    FLAGS,
    MISSING,
    MULTISTAGE,
    OWN,
    VENDOR,
    Matmul,
    asked_for,
    choices_for,
    mends,
    self_check_is_on,
)
from .cublas import INSTALL, load_cublas
from .products import Product, leaves_some_dense, products
from .self_check import MOST_ROWS, Wrong, head_rows, rows_to_try, wrong_products
from .slow_products import slow_products

logger = logging.getLogger("max.pipelines")


def use_right_matmul(
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    session: InferenceSession,
    devices: Sequence[Device],
    requests: int | None = None,
) -> list[Path]:
    """Has ``session`` compile what it loads from now on with a matmul that is right.

    On a GPU, MAX's own is tried at the model's shapes and, if it is wrong, others.
    Not on a CPU, nor where there is only a GPU's name to compile for.

    Args:
        config: The model's; need not be finalized.
        pipeline_config: What the user asked for.
        session: Compiles the model; nothing of it yet.
        devices: Those that it will run on.
        requests: On how many rows the head runs at most; ``None`` if it has none, or
            if they are not known.

    Returns:
        The kernels that the model's graphs must be traced with.

    Raises:
        UserError: (a ``ValueError``) if none is right, or if cuBLAS is needed and
            is not installed.
    """
    assert all(device.is_host == devices[0].is_host for device in devices)
    checks = self_check_is_on()
    asked = matmul = asked_for(config, pipeline_config, devices[0])
    if devices[0].is_host or is_virtual_device_mode():
        return _libraries(asked, fp8=config.needs_own_matmul)
    quantized = config.quantization is not None
    some_dense = quantized and leaves_some_dense(pipeline_config)
    every = products(config, some_dense=some_dense)
    if checks:
        matmul = _right(asked, every, config, pipeline_config, devices, requests)
    if matmul is not asked and pipeline_config.runtime.precompiled_mefs:
        raise UserError(
            f"{OWN} is wrong on this GPU, and the graphs in --precompiled-mefs "
            f"were compiled with it. Compile them with {FLAGS[matmul]} and "
            "start with that too, or leave --precompiled-mefs out."
        )
    slow = slow_products(matmul, every, config.dtype)
    if slow:
        if matmul is OWN and pipeline_config.runtime.precompiled_mefs:
            raise UserError(
                f"The graphs in --precompiled-mefs may call cuBLAS for (K, N) = "
                f"{slow}, and it {MISSING}. Install it, or leave --precompiled-mefs "
                "out."
            )
        logger.warning(
            "%s has no fast kernel for products of (K, N) = %s: MAX's slowest one "
            "computes them where a step has more than one row.%s",
            *(matmul[0].upper() + matmul[1:], slow),
            f" With cuBLAS they are fast: {INSTALL}" if matmul is OWN else "",
        )
    fp8 = config.needs_own_matmul
    return compile_with(matmul, session, every, config.dtype, fp8=fp8)


def _right(
    asked: Matmul,
    every: Sequence[Product],
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    devices: Sequence[Device],
    requests: int | None,
) -> Matmul:
    """Returns the first matmul that is right, and says in the log what that means."""
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
        # Before it, for a kernel that hangs leaves nothing else in the log.
        logger.info(
            "The self-check compiles and runs %d products with %s. "
            "%s=off starts without it.",
            *(len(every), matmul, switches.SELF_CHECK),
        )
        return _finding(
            matmul, every, config, pipeline_config, devices, tokens, requests
        )

    matmul = choose(choices, finding, mends(asked, config))
    left_out = config.quantization is not None and not config.needs_own_matmul
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
    matmul: Matmul,
    session: InferenceSession,
    every: Sequence[Product] = (),
    dtype: DType = DType.bfloat16,
    *,
    fp8: bool = False,
) -> list[Path]:
    """Has ``session`` compile what it loads from now on with a matmul.

    Nothing takes that back.

    Args:
        matmul: Which.
        session: Compiles the model.
        every: The model's products. MAX's own matmul would call cuBLAS for some of
            them, and end the process where that is not installed: it is kept off it.
        dtype: Of their operands, unless they are in FP8.
        fp8: Whether the multistage GEMM takes products in FP8 too.

    Returns:
        The kernels that the graphs must be traced with.

    Raises:
        UserError: (a ``ValueError``) if that is cuBLAS and it is not installed: MAX
            would end the process.
    """
    if matmul is VENDOR:
        if accelerator_api() == "cuda" and load_cublas() is None:
            raise UserError(f"NVIDIA's cuBLAS {MISSING}.")
        session._use_vendor_blas("true")
    elif matmul is OWN and slow_products(matmul, every, dtype):
        session._set_mojo_define("MODULAR_DISABLE_VENDOR_FALLBACK", "true")
    return _libraries(matmul, fp8=fp8)


def _libraries(matmul: Matmul, *, fp8: bool) -> list[Path]:
    """Returns the kernels that take the place of MAX's own."""
    return [library(fp8=fp8)] if matmul is MULTISTAGE else []


def choose(
    matmuls: Sequence[Matmul],
    finding: Callable[[Matmul], str | None],
    mends: Sequence[str] = (),
) -> Matmul:
    """Returns the first that nothing is found against; says in the log what was.

    Args:
        matmuls: In the order in which they are tried.
        finding: Returns what is wrong with one, or ``None``.
        mends: What else the user can do.

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
    if f"{VENDOR} {MISSING}" in findings:
        mends = [f"install NVIDIA's cuBLAS ({INSTALL})", *mends]
    raise UserError(
        f"On this GPU ({gpu_architecture()}) this model's answers would be wrong: "
        f"{'; '.join(findings)}. See modular/modular #6883 and #7146. "
        f"{_sentence(mends)}{switches.SELF_CHECK}=off starts anyway, with wrong "
        "answers."
    )


def _sentence(mends: Sequence[str]) -> str:
    joined = ", or ".join(mends)
    return f"{joined[0].upper()}{joined[1:]}. " if joined else ""


def _finding(
    matmul: Matmul,
    every: Sequence[Product],
    config: MistralConfig,
    pipeline_config: PipelineConfig,
    devices: Sequence[Device],
    tokens: int,
    requests: int | None,
) -> str | None:
    """Returns what is wrong with a matmul of these products on these devices."""
    if matmul is VENDOR and accelerator_api() == "cuda" and load_cublas() is None:
        return MISSING
    session = InferenceSession(devices=[*devices])
    pipeline_config.configure_session(session)
    try:
        fp8 = config.needs_own_matmul
        libraries = compile_with(matmul, session, every, config.dtype, fp8=fp8)
        with default_custom_extensions_scope(*libraries):
            wrong = wrong_products(
                session, devices, every, config.dtype, tokens, requests
            )
    except Exception as error:
        logger.debug("%s does not run", matmul, exc_info=True)
        return f"does not run: {error}"
    return describe(wrong)


def describe(wrong: Sequence[Wrong]) -> str | None:
    """Returns what a message says of wrong products; ``None`` of none."""
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
    return f"gets {wrong[0]} wrong{more}"
