"""The KV caches of a model: one, or two where only some layers have a window.

MAX gives a windowed cache's pages back as no token sees them any more, so such
layers have one of their own (as MAX's gpt_oss and Gemma have it).
"""

from __future__ import annotations

from collections.abc import Sequence

from max.dtype import DType
from max.graph import DeviceRef
from max.nn.kv_cache import (
    CacheLeafParamInterface,
    KVCacheParamInterface,
    KVCacheParams,
    MultiKVCacheParams,
)
from max.pipelines.lib import KVCacheConfig
from transformers import PretrainedConfig

from . import hf_config as hf
from .errors import UserError
from .gpu import gpu_architecture
from .kernels import KernelMode

# MAX's CPU kernel does not compile for a window below 8 SIMD registers of
# float32: 128 tokens with AVX-512, the widest there is.
MIN_CPU_WINDOW = 128

# MAX's KV cache takes pages of a multiple of that many tokens, and refuses others only
# after the model is compiled.
PAGE_SIZES = 128

# Bytes of the scale beside a head's codes: `SCALE` in `kernels/kv_codes.mojo`.
SCALE_BYTES = 4

# Their order in a model that has both.
FULL, SLIDING = 0, 1


def effective_windows(windows: Sequence[int | None], longest: int) -> list[int | None]:
    """Returns each layer's window, or ``None`` where no sequence can outgrow it.

    Args:
        windows: As the checkpoint has them.
        longest: The longest sequence, in tokens.
    """
    return [None if w is None or w >= longest else w for w in windows]


def make_kv_params(
    config: PretrainedConfig,
    kv_cache_config: KVCacheConfig,
    dtype: DType,
    devices: list[DeviceRef],
    data_parallel_degree: int,
    longest: int,
) -> KVCacheParamInterface:
    """Returns the parameters of the KV cache, or of a tree of two.

    Args:
        config: A text tower's config.
        kv_cache_config: What the user asked for.
        dtype: Of keys and values, as the user names it.
        devices: All devices, replica by replica.
        data_parallel_degree: How many replicas.
        longest: The longest sequence, in tokens.

    Raises:
        UserError: (a ``ValueError``) if MAX has no pages of the size asked for, or the
            CPU kernels no heads of that width in 8 bits.
    """
    page_size = kv_cache_config.kv_cache_page_size
    if page_size < PAGE_SIZES or page_size % PAGE_SIZES != 0:
        raise UserError(
            f"--kv-cache-page-size is {page_size}, but has to be a multiple of "
            f"{PAGE_SIZES}. Leave it out."
        )
    windows = effective_windows(hf.sliding_windows(config), longest)
    on_cpu = any(device.is_cpu() for device in devices)
    dtype, width = stored_as(dtype, hf.head_dim(config), on_cpu=on_cpu)

    def params(window: int | None) -> KVCacheParams:
        return kv_cache_config.to_params(
            dtype=dtype,
            n_kv_heads=config.num_key_value_heads,
            head_dim=width,
            num_layers=windows.count(window),
            devices=devices,
            data_parallel_degree=data_parallel_degree,
            allow_kv_head_replication=True,
            # MAX's caches know no window of one token.
            window_size=None if window is None else max(window, 2),
        )

    sliding = {window for window in windows if window is not None}
    if None not in windows:
        (window,) = sliding
        return params(window)
    if not sliding:
        return params(None)
    (window,) = sliding
    tree = {"full": params(None), "sliding": params(window)}
    return MultiKVCacheParams.from_params(tree)


def stored_as(dtype: DType, head_dim: int, *, on_cpu: bool) -> tuple[DType, int]:
    """Returns the dtype that keys and values are stored in, and a head's width in it.

    MAX's name of 8 bits is float8_e4m3fn. On a CPU they are int8, with a scale for
    each head's key and value, which keeps more of them.

    Args:
        dtype: As the user names it.
        head_dim: Lanes of a head.
        on_cpu: Whether the model runs on a CPU.

    Raises:
        UserError: (a ``ValueError``) if the CPU kernels have no heads of that width in
            8 bits.
    """
    if dtype != DType.float8_e4m3fn or not on_cpu:
        return dtype, head_dim
    if head_dim % 4 != 0:
        raise UserError(
            f"The KV cache would be {dtype.name}, for which head_dim has to be, on a "
            f"CPU, a multiple of 4, but it is {head_dim}. Leave --kv-cache-format out."
        )
    return DType.int8, head_dim + SCALE_BYTES


def default_cpu_dtype(kernel_mode: KernelMode) -> DType:
    """Returns the dtype of keys and values on a CPU, where no flag says.

    bfloat16, as on GPUs: half the memory, and no number is too large for it. Where
    activations stay float32, so do they.
    """
    return DType.bfloat16 if kernel_mode == "on" else DType.float32


def check_cache(
    dtype: DType,
    windows: Sequence[int | None],
    devices: Sequence[DeviceRef],
    kernel_mode: KernelMode,
) -> None:
    """Raises a ``UserError`` if the attention has no kernel for a KV cache.

    Args:
        dtype: Of keys and values, as they are stored.
        windows: Each layer's, as it has an effect.
        devices: Where the model runs.
        kernel_mode: Which CPU kernels run.
    """
    if not any(device.is_cpu() for device in devices):
        gpu = gpu_architecture()
        fp8 = dtype in (DType.float8_e4m3fn, DType.float8_e4m3fnuz)
        if fp8 and gpu is not None and not gpu.startswith(("sm_10", "gfx950")):
            raise UserError(
                f"The KV cache would be {dtype.name}, which MAX's attention reads "
                f"on sm_100 and gfx950 only, and this GPU is {gpu}. Leave "
                "--kv-cache-format out."
            )
        return
    # MAX's own attention on a CPU knows one dtype only.
    known = {DType.float32: "float32"}
    if kernel_mode != "off":
        known |= {DType.bfloat16: "bfloat16", DType.int8: "float8_e4m3fn"}
    if dtype not in known:
        *others, last = known.values()
        names = f"{', '.join(others)} or {last}" if others else last
        asked = "float8_e4m3fn" if dtype == DType.int8 else dtype.name
        raise UserError(
            f"The KV cache would be {asked}, but here on a CPU it can be {names}. "
            "Leave --kv-cache-format out."
        )
    window = min((w for w in windows if w is not None), default=MIN_CPU_WINDOW)
    if window < MIN_CPU_WINDOW and kernel_mode == "off":
        raise UserError(
            f"sliding_window is {window}, but on a CPU MAX's attention "
            f"needs a window of at least {MIN_CPU_WINDOW} tokens. "
            f"Leave MAX_MISTRAL_KERNELS=off out, or set --max-length {window} "
            "or less, where the window has no effect."
        )


def kv_groups(kv_params: KVCacheParamInterface) -> list[KVCacheParams]:
    """Returns the parameters of each cache, in the order of :func:`kv_places`."""
    found: list[CacheLeafParamInterface] = [kv_params]
    if isinstance(kv_params, MultiKVCacheParams):
        found = list(kv_params.children.values())
    groups = [group for group in found if isinstance(group, KVCacheParams)]
    assert len(groups) == len(found)
    return groups


def kv_places(
    kv_params: KVCacheParamInterface, windows: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Returns where each layer's keys are: in which cache, and which layer of it.

    Args:
        kv_params: From :func:`make_kv_params`.
        windows: Each layer's, as the checkpoint has them.
    """
    if len(kv_groups(kv_params)) == 1:
        return [(FULL, i) for i in range(len(windows))]
    places = []
    used = {FULL: 0, SLIDING: 0}
    for window in windows:
        group = FULL if window is None else SLIDING
        places.append((group, used[group]))
        used[group] += 1
    return places
