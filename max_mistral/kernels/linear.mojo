"""The op of linear layers."""

import extensibility
from extensibility import InputTensor, InputVariadicTensors
from extensibility import _FusedInputTensor as FusedInputTensor
from extensibility import _FusedOutputTensor as FusedOutputTensor
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level
from std.utils import IndexList

from .layout import ROWS, Floats
from .phases import Phases
from .stage import Stage, Weight


@extensibility.register("mistral_linear")
struct Linear:
    """`y = x @ w.T` for one or more packed weights; their outputs are concatenated.
    """

    @staticmethod
    def execute[
        kinds: Int,
        portable: Bool,
        rounded: Bool,
        amx: Bool,
        normed: Bool,
        target: StaticString,
    ](
        y: FusedOutputTensor[dtype=DType.float32, rank=2, ...],
        x: FusedInputTensor[dtype=DType.float32, rank=2, ...],
        norm: InputTensor[dtype=DType.float32, rank=1, ...],
        epsilon: Float32,
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        weights: InputVariadicTensors[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Writes `y`, `[tokens, sum(rows)]`, from `x`, `[tokens, columns]`.

        Parameters:
            kinds: As `Stage` takes it.
            portable: As `Stage` takes it.
            rounded: As `Stage` takes it.
            amx: As `Stage` takes it.
            normed: Whether to apply RMSNorm to `x` first.
            target: Where the op runs, a CPU.

        Args:
            y: The outputs of the weights, concatenated.
            x: The activations.
            norm: RMSNorm's weight, `[columns]`, if `normed`.
            epsilon: RMSNorm's epsilon, if `normed`.
            rows: How many rows each weight has.
            weights: `[panels, panel_bytes]` each, as `layout.mojo` describes.
            ctx: What runs the threads.
        """
        var pointers = List[Weight]()
        comptime for i in range(weights.size):
            pointers.append(
                weights[i].unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
            )
        var threads = parallelism_level(None)
        var stage = Stage[kinds, weights.size, portable, rounded, amx](
            x.dim_size(0),
            x.dim_size(1),
            rows.unsafe_ptr(),
            pointers^,
            threads,
        )
        var phases = Phases([stage.to_interleave(), len(stage.shares)])

        @inline(.always)
        def load(token: Int, column: Int, count: Int) {imm} -> Floats:
            if count >= ROWS:
                return x._fused_load[ROWS](IndexList[2](token, column))
            var found = Floats(0)
            for i in range(count):
                found[i] = x._fused_load[1](IndexList[2](token, column + i))
            return found

        @inline(.always)
        def write(token: Int, column: Int, sums: Floats, count: Int) {imm}:
            if count >= ROWS:
                y._fused_store[ROWS](IndexList[2](token, column), sums)
                return
            for i in range(count):
                y._fused_store[1](IndexList[2](token, column + i), sums[i])

        @inline(.always)
        def run(thread: Int) {imm}:
            stage.run[normed](
                phases, 0, thread, load, write, norm.unsafe_ptr(), epsilon
            )

        ctx.enqueue_cpu_range(run, count=min(threads, phases.most_shares()))
        ctx.synchronize()
        _ = phases^
        _ = stage^
