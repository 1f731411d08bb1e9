"""A linear layer as work that threads share: its rows interleaved, then multiplied."""

from std.math import ceildiv

from . import amx_dense
from .encodings import BF16, KINDS, is_dense, panel_bytes
from .fetch import fetch_later
from .layout import LINE, PART, ROWS, Floats
from .multiply import Matrix, multiply_panels
from .norm import normalize
from .phases import Phases
from .shares import Share, cut
from .tiles import (
    filled,
    interleave_rows,
    max_panels,
    max_rows,
    one_row_panels,
    rounds,
    row_bytes,
    takes_amx,
    takes_several,
)

# Bytes of a share that a thread fetches at most while it waits, and at a time.
comptime MOST_FETCHED = 128 * 1024
comptime FETCHED = 16 * LINE
# Columns that it pays to let another thread interleave.
comptime FEWEST_COLUMNS = 8 * PART

comptime Weight = ImmPointer[UInt8, ImmUntrackedOrigin]


def kind_of(kinds: Int, i: Int) -> Int:
    """The kind of weight `i`; `kinds` holds a byte for each."""
    comptime assert KINDS <= 256, "a byte is too small"
    return (kinds >> (8 * i)) & 255


struct Stage[
    kinds: Int,
    count: Int,
    portable: Bool,
    rounded: Bool,
    amx: Bool,
]:
    """`x @ w.T` for one or more packed weights; their outputs are concatenated.

    Parameters:
        kinds: A byte per weight, the first lowest: its index in
            `encodings.ENCODINGS`. Either all weights are dense or none is.
        count: How many weights.
        portable: Whether to do without AVX-512.
        rounded: Whether to round the activations: to bfloat16 if the weights
            are bfloat16, which all are or none is; to int8 if they are
            quantized and the CPU has dot products of int8 (`dots.mojo`).
        amx: Whether to multiply them by AMX, if they are BF16, not in 12 bits, and
            the CPU has it. Columns are a multiple of `amx_dense.STEP` then.
    """

    comptime kind = kind_of(Self.kinds, 0)
    comptime dense = is_dense[Self.kind]()
    comptime rounds_x = Self.rounded and rounds[Self.kind, Self.portable]()
    comptime by_amx = Self.amx and takes_amx[Self.kind, Self.rounds_x]()
    comptime max_mr = max_rows[Self.kind, Self.portable, Self.rounds_x, Self.by_amx]()

    var tokens: Int
    var columns: Int
    var weights: List[Weight]
    var matrices: List[Matrix]
    var shares: List[Share]
    """Of the weights."""
    var pieces: Int
    """Into how many a tile of rows is cut to be interleaved."""
    var x_row: Int
    """Bytes of an interleaved row."""
    var _store: List[UInt8]

    def __init__(
        out self,
        tokens: Int,
        columns: Int,
        rows: ImmPointer[Int64, _],
        var weights: List[Weight],
        threads: Int,
    ) raises:
        """Cuts the work.

        Args:
            tokens: Rows of activations.
            columns: Of the weights.
            rows: How many rows each weight has.
            weights: `[panels, panel_bytes]` each, as `layout.mojo` describes.
            threads: How many there are.
        """
        comptime assert Self.count < 8, "an integer has seven bytes beside its sign"
        comptime if Self.by_amx:
            comptime for i in range(Self.count):
                comptime assert kind_of(Self.kinds, i) == BF16, "AMX reads its panels"
            if columns % amx_dense.STEP:
                raise Error(t"AMX cannot multiply {columns} columns.")
        self.tokens = tokens
        self.columns = columns
        self.weights = weights^
        self.x_row = row_bytes[Self.dense, Self.rounds_x](columns)
        # Room to begin at a line, as a row of AMX's does.
        self._store = List[UInt8](
            unsafe_uninit_length=filled[Self.by_amx](tokens) * self.x_row + 2 * LINE
        )
        self.matrices = List[Matrix](capacity=Self.count)
        var first = 0
        comptime for i in range(Self.count):
            comptime kind = kind_of(Self.kinds, i)
            var n = Int(rows.unsafe_load(i))
            self.matrices.append(Matrix(panel_bytes[kind](columns), n, first))
            first += n
        var tiles = ceildiv(tokens, Self.max_mr)
        self.pieces = 1
        if tiles < threads:
            var most = max(1, columns // FEWEST_COLUMNS)
            self.pieces = min(ceildiv(threads, max(1, tiles)), most)
        var unit = Self._unit(tokens, first, threads, self.matrices[0].panel)
        self.shares = cut(self.matrices, unit, threads)

    @staticmethod
    def _unit(tokens: Int, rows: Int, threads: Int, panel: Int) -> Int:
        """What a share's panels are a multiple of: those multiplied together."""
        comptime alone = one_row_panels[Self.kind, Self.portable, Self.rounds_x]()
        comptime most = max_panels[Self.kind, Self.portable, Self.rounds_x]()
        comptime fewest = max(alone, most)
        comptime if not is_dense[Self.kind]():
            # As many as one row takes, if threads still get a few shares each.
            var few = rows // ROWS < 4 * alone * threads
            if few or not takes_several[Self.kind, Self.portable, Self.rounds_x](
                tokens, panel
            ):
                return most
        comptime if Self.by_amx:
            if tokens > amx_dense.MAX_ROWS:
                # As many as are fast together, but something for each thread.
                var share = rows // ROWS // (2 * threads) // fewest * fewest
                return max(fewest, min(amx_dense.GROUP, share))
        return fewest

    def interleaved(self) -> MutPointer[UInt8, MutUntrackedOrigin]:
        """The interleaved rows."""
        var start = self._store.unsafe_ptr()
        return (
            start.unsafe_offset(-Int(start) & (LINE - 1))
            .unsafe_mut_cast[True]()
            .unsafe_origin_cast[MutUntrackedOrigin]()
        )

    def to_interleave(self) -> Int:
        """Shares of the work of interleaving."""
        return ceildiv(self.tokens, Self.max_mr) * self.pieces

    @inline(.always)
    def run[
        Load: def(Int, Int, Int) -> Floats,
        Write: def(Int, Int, Floats, Int) -> None,
        //,
        normed: Bool = False,
    ](
        self,
        phases: Phases,
        phase: Int,
        thread: Int,
        load: Load,
        write: Write,
        norm: ImmPointer[Float32, _],
        epsilon: Float32 = 0,
    ):
        """Does this thread's part of two phases: of `to_interleave` shares, and of
        those of the weights.

        Parameters:
            Load: The type of `load`.
            Write: The type of `write`.
            normed: Whether to apply RMSNorm first.

        Args:
            phases: All of the op.
            phase: The first of the two.
            thread: Which of the threads this is.
            load: Takes a row, a column and how many numbers to return from there on;
                the rest of the 16 are not looked at.
            write: As `multiply_panels` takes it.
            norm: RMSNorm's weight, `[columns]`, if `normed`.
            epsilon: RMSNorm's, if `normed`.
        """

        @inline(.always)
        def interleave(share: Int) {imm}:
            self.interleave[normed](load, norm, epsilon, share)

        @inline(.always)
        def multiply(share: Int) {imm}:
            self.multiply(write, share)

        @inline(.always)
        def fetch(share: Int, turn: Int) {imm}:
            self.fetch(share, turn)

        phases.run(phase, thread, interleave)
        phases.run(phase + 1, thread, multiply, fetch)

    @inline(.always)
    def interleave[
        Load: def(Int, Int, Int) -> Floats, //, normed: Bool
    ](
        self,
        load: Load,
        norm: ImmPointer[Float32, _],
        epsilon: Float32,
        share: Int,
    ):
        """Interleaves some columns of a tile of rows; see `run`.

        Parameters:
            Load: The type of `load`.
            normed: Whether to apply RMSNorm first.

        Args:
            load: Returns activations.
            norm: RMSNorm's weight.
            epsilon: RMSNorm's.
            share: Which.
        """
        var first = share // self.pieces * Self.max_mr
        var rows = min(filled[Self.by_amx](self.tokens) - first, Self.max_mr)
        var columns = self.columns
        var parts = ceildiv(columns, PART)
        var piece = share % self.pieces
        var begin = piece * parts // self.pieces * PART
        var end = min(columns, (piece + 1) * parts // self.pieces * PART)
        var scratch = List[Float32](unsafe_uninit_length=rows * columns)
        var floats = scratch.unsafe_ptr()
        for row in range(rows):
            var to = floats.unsafe_offset(row * columns)
            if first + row == self.tokens:
                # The row of zeros that fills up the last tile.
                for k in range(begin, end):
                    to.unsafe_store(k, 0)
                continue
            # RMSNorm needs the whole row.
            var k = 0 if normed else begin
            var stop = columns if normed else end
            while k + ROWS <= stop:
                to.unsafe_store(k, load(first + row, k, ROWS))
                k += ROWS
            if k < stop:
                var some = load(first + row, k, stop - k)
                for i in range(stop - k):
                    to.unsafe_store(k + i, some[i])
            comptime if normed:
                normalize(to, norm, columns, epsilon, begin, end)
        interleave_rows[Self.kind, Self.portable, Self.rounds_x, Self.by_amx](
            self.interleaved().unsafe_offset(first * self.x_row),
            floats,
            rows,
            columns,
            begin,
            end,
        )
        _ = scratch^

    @inline(.always)
    def multiply[
        Write: def(Int, Int, Floats, Int) -> None, //
    ](self, write: Write, share: Int):
        """Multiplies all rows by a share of the weights.

        Args:
            write: As `multiply_panels` takes it.
            share: Which.
        """
        var panels = self.shares[share]
        comptime for k in range(Self.count):
            if panels.matrix == k:
                multiply_panels[
                    kind_of(Self.kinds, k), Self.portable, Self.rounds_x, Self.by_amx
                ](
                    write,
                    self.interleaved(),
                    self.weights[k],
                    self.matrices[k],
                    panels.begin,
                    panels.end,
                    self.tokens,
                    self.columns,
                    self.x_row,
                )

    @inline(.always)
    def fetch(self, share: Int, turn: Int):
        """Fetches the next bytes of a share of the weights; see `Phases.run`."""
        var panels = self.shares[share]
        var panel = self.matrices[panels.matrix].panel
        var end = min(MOST_FETCHED, (panels.end - panels.begin) * panel)
        if (turn + 1) * FETCHED <= end:
            fetch_later[FETCHED](
                self.weights[panels.matrix].unsafe_offset(
                    panels.begin * panel + turn * FETCHED
                )
            )
