"""GPTQ's projections of one input as one product: Q, K and V, gate and up."""

from __future__ import annotations

from collections.abc import Sequence

from max.graph import TensorValue, TensorValueLike, Weight, ops
from max.graph.quantization import QuantizationEncoding
from max.nn.linear import MLP, GPTQLinear

from .qkv import SeparateQKV

# Columns and rows of the weights that MAX's kernel is tuned for, those of a 7B with 8
# key-value heads (``matmul_gpu_qint4_impl`` in MAX's Mojo). All others get one tile,
# which is for many rows of activations.
_TUNED = {(4096, 4096), (4096, 6144), (4096, 14336), (14336, 4096)}


class StackedGPTQQKV(SeparateQKV):
    """Runs the three as one.

    MAX's own ``fused_qkv_ragged_matmul_quantized`` writes keys to the cache before
    they are rotated, and so rotates in a kernel more.
    """

    def __call__(self, x: TensorValue) -> TensorValue:
        """Maps bfloat16 ``[tokens, in_dim]`` to ``[tokens, sum(out_dims)]``."""
        return stacked_product(x, self.projections)


class StackedGPTQMLP(MLP):
    """Runs gate and up as one, which ``MLP`` does not do in GPTQ."""

    gate_proj: GPTQLinear
    up_proj: GPTQLinear

    def __call__(self, x: TensorValueLike) -> TensorValue:
        """Maps bfloat16 ``[tokens, hidden]`` to the same."""
        both = stacked_product(TensorValue(x), [self.gate_proj, self.up_proj])
        wide = int(both.shape[1]) // 2
        gate, up = ops.split(both, [wide, wide], axis=1)
        return self.down_proj(self.activation_function(gate) * up)


def is_worth_stacking(in_dim: int, out_dim: int) -> bool:
    """Whether two such projections are best run as one.

    A launch less, but not if it costs them the kernel that is tuned for each.
    """
    return (in_dim, out_dim) not in _TUNED or (in_dim, 2 * out_dim) in _TUNED


def stacked_product(x: TensorValue, linears: Sequence[GPTQLinear]) -> TensorValue:
    """Returns what projections make of one input, beside each other.

    Args:
        x: bfloat16 ``[tokens, in_dim]``.
        linears: Their columns are in the same order.

    Returns:
        bfloat16 ``[tokens, sum(out_dims)]``.
    """
    first = linears[0]
    weight = stacked_weight(linears)
    order = []
    if first.perm_idx is not None:
        order = [TensorValue(first.perm_idx)]
        x = ops.gather(x, order[0], axis=1)
    return ops.qmatmul(
        QuantizationEncoding.GPTQ, first.quantization_config, x, weight, *order
    )


def stacked_weight(linears: Sequence[GPTQLinear]) -> TensorValue:
    """Returns the weight of projections as one, as ``qmatmul`` takes it.

    Returns:
        uint8 ``[in_dim / 2 + in_dim / 64, sum(out_dims)]``: the bytes of
        ``qweight`` and, below them, of ``scales``.
    """
    qweight = _beside([linear.qweight for linear in linears])
    return ops.concat([qweight, _beside([linear.scales for linear in linears])])


def _beside(weights: Sequence[Weight]) -> TensorValue:
    rows = []
    width = 0
    for weight in weights:
        dtype, (height, columns) = weight.original_dtype_and_shape
        # To the bytes of each row: uint8 [height, columns * size]
        rows.append(ops.reshape(weight, (height, int(columns) * dtype.size_in_bytes)))
        width += int(columns)
    # [height, width * size] -> [height * size, width], what the kernel makes of it
    return ops.concat(rows, axis=1).reshape((-1, width))
