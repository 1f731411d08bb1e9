"""The op of embeddings."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from .encodings import panel_bytes
from .layout import ROWS
from .one_row import write_row


@extensibility.register("mistral_embedding")
struct Embedding:
    """`y[i] = w[tokens[i]]` for a packed weight of `rows[0]` rows.

    Raises if the weight has no such row: ids come from outside.
    """

    @staticmethod
    def execute[
        kind: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        tokens: InputTensor[dtype=DType.int64, rank=1, ...],
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var columns = y.dim_size(1)
        var panel = panel_bytes[kind](columns)
        var yp = y.unsafe_ptr()
        var tp = tokens.unsafe_ptr()
        var wp = w.unsafe_ptr()
        # The last panel may have more rows, which are padding.
        var known = min(
            Int(rows.unsafe_ptr().unsafe_load(0)), w.dim_size(0) * ROWS
        )

        for i in range(y.dim_size(0)):
            var id = tp.unsafe_load(i)
            if id < 0 or id >= Scalar[DType.int64](known):
                raise Error(
                    "token id ",
                    id,
                    " is not in the embedding, which has the rows 0 to ",
                    known - 1,
                )

        @inline(.always)
        def gather(i: Int) {imm}:
            var row = Int(tp.unsafe_load(i))
            var p = wp.unsafe_offset(row // ROWS * panel)
            write_row[kind](
                p, columns, row % ROWS, yp.unsafe_offset(i * columns)
            )

        ctx.enqueue_cpu_range(gather, count=y.dim_size(0))
        ctx.synchronize()
