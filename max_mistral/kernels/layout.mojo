"""How a packed weight lies in memory.

A `[N, K]` weight is cut into panels of 16 output rows, one after another; the
last panel is padded with copies of its last row. Inside a panel the rows are interleaved, so
that one SIMD vector holds the same column (or columns) of all 16 rows. A panel
is a sequence of blocks, and `packing.py` writes them byte for byte.

Shapes below are in bytes unless they name a dtype. The last axis is the fastest.

Dense: a block is one column, of bfloat16 two (an odd K is padded with zeros).

  F32    [16] float32
  F16    [16] float16
  BF16   [16][2] bfloat16

BF16_IN_12_BITS, bfloat16 as well, is in `narrow.mojo`.

Quantized, that is, GGUF block codes: a weight is `scale * code - minimum`, with
an unsigned code. What 16 rows have in their GGUF blocks becomes one block:

  in: 16 GGUF blocks, one per row      out: one packed block

    row 0:  d m scales codes             d       [16] float16
    row 1:  d m scales codes      ->     m       [16] float16, if there are minima
      ...                                scales  see below, if there are sub-scales
    row 15: d m scales codes             part 0  columns 0 to 31
                                         part 1  columns 32 to 63
                                           ...

A part holds the codes of 32 columns: lines of 64 bytes, then the extra bits. One
line is one vector. Byte `4 r + j` of a line belongs to row `r`: four columns of a
row lie side by side, as x86's `vpdpbusd` and Arm's `sdot` take them.

  2-bit lines, [2][16][4] (Q2_K, Q3_K, TQ2_0)
      line h, byte 4 r + j:  bits 2 i and 2 i + 1 belong to column 16 h + 4 i + j

  8-bit lines, [8][16][4] (Q8_0)
      line i, byte 4 r + j:  column 4 i + j

  4-bit lines, [4][16][4] (all others)
      line i, byte 4 r + j:  | column 16 + 4 i + j | column 4 i + j |
                              bits 7 to 4           bits 3 to 0

  1 extra bit, [16][4] (Q3_K's third, the fifth of Q5_0, Q5_1 and Q5_K)
      byte 4 r + j:          bit i belongs to column 4 i + j, for i in 0 to 7

  2 extra bits, [2][16][4] (Q6_K's upper bits), as 2-bit lines

The codes of IQ4_NL, IQ4_XS and the three `..._IN_...` are places in a table of
weights. Those three are no types of GGUF: a code of llama.cpp's other IQ types says
what 4 or 8 columns are together, so `gguf_encode.py` takes them apart, into blocks
of Q3_K and IQ4_XS that have a table and a `unit` of their own.

Sub-scales are integers that multiply d; sub-minima multiply m.

  4 bits, with sub-minima (Q2_K), one of each per 16 columns:
      [16][16]     byte s of a row: | sub-minimum | sub-scale |
  6 bits, with sub-minima (Q4_K, Q5_K), one of each per 32 columns:
      [8][16]      byte p of a row: | sub-minimum's low 4 bits | sub-scale's |
      [16] uint32  bits 4 p to 4 p + 3:
                                    | sub-minimum's upper 2 bits | sub-scale's |
  6 bits, no sub-minima (Q3_K, IQ4_XS), n of a row, 32 too large:
      [n / 2][16]  byte p of a row: | low 4 bits of 2 p + 1 | of 2 p |
      [16] 2 n bits, an integer: bits 2 s and 2 s + 1 are the upper 2 bits of s
  8 bits (Q6_K), one int8 per 16 columns, no sub-minima:
      [16][16]     byte s of a row

So one block of Q6_K, 256 columns of 16 rows, 3360 = 16 x 210 bytes, is

     at    size
      0      32   d            [16] float16
     32     256   sub-scales   [16][16] int8
    288     384   part 0       columns 0 to 31
              256   4-bit lines   [4][16][4]
              128   2 extra bits  [2][16][4]
    672     384   part 1       columns 32 to 63
    ...
   2976     384   part 7       columns 224 to 255

and a weight is `d * sub-scale * (lower 4 bits + 16 * upper 2 bits - 32)`.

To add a GGUF type: give it a row at the end of `ENCODINGS`, and if its bits lie in
a way that no other type has, teach `codes.mojo` to read it. In Python give it a
row in `packing.Encoding` and `_PIECES`. `tests/unit/test_kernels.py` compares
the two tables and runs the kernels on every row.
"""

from std.math import ceildiv

comptime ROWS = 16
comptime Floats = SIMD[DType.float32, ROWS]
# Columns of a part, and bytes of one of its lines.
comptime PART = 32
comptime LINE = 4 * ROWS
# What a code stands for, plus the encoding's `bias`.
comptime Table = SIMD[DType.uint8, 16]
# Codes that are numbers.
comptime NO_TABLE = Table(0)
# llama.cpp's `kvalues_iq4nl`, plus 128.
comptime IQ4 = Table(
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241
)
# The numbers in llama.cpp's grids with either sign: 8, 25, 43, plus 43;
comptime IQ2 = Table(0, 18, 35, 51, 68, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# 4, 12, 20, 28, 36, 44, 52, 62, plus 62;
comptime IQ3_XXS = Table(
    0, 10, 18, 26, 34, 42, 50, 58, 66, 74, 82, 90, 98, 106, 114, 124
)
# 1, 3, 5, 7, 9, 11, 13, 15, plus 15.
comptime IQ3_S = Table(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)


struct Encoding(ImplicitlyCopyable):
    """How a packed weight is encoded. Sizes and offsets are in bytes."""

    var name: StaticString
    """As in GGUF, if it is one of GGUF's."""
    var dtype: DType
    """Of a dense weight; uint8 for codes."""
    var block_columns: Int
    """Columns in a block."""
    var row_bytes: Int
    """Bytes of one row in a block, the same as in a GGUF file."""
    var low_bits: Int
    """Bits of a code in the lines; of a dense weight, all its bits."""
    var extra_bits: Int
    """Bits of a code that follow the lines."""
    var bias: Int
    """Code of the weight zero, where there are no minima; with a table, its entry."""
    var has_minima: Bool
    """Whether each row has a float16 minimum next to its scale."""
    var scale_columns: Int
    """Columns that share a scale."""
    var sub_scale_bits: Int
    """Bits of a sub-scale, and of a sub-minimum if there are minima."""
    var table: Table
    """What codes stand for; `NO_TABLE` if for themselves."""
    var unit: Float32
    """What a scale is multiplied by, a power of two."""

    def __init__(
        out self,
        name: StaticString,
        dtype: DType = .uint8,
        *,
        block_columns: Int,
        row_bytes: Int,
        low_bits: Int,
        extra_bits: Int = 0,
        bias: Int = 0,
        has_minima: Bool = False,
        scale_columns: Int = 32,
        sub_scale_bits: Int = 0,
        table: Table = NO_TABLE,
        unit: Float32 = 1,
    ):
        self.name = name
        self.dtype = dtype
        self.block_columns = block_columns
        self.row_bytes = row_bytes
        self.low_bits = low_bits
        self.extra_bits = extra_bits
        self.bias = bias
        self.has_minima = has_minima
        self.scale_columns = scale_columns
        self.sub_scale_bits = sub_scale_bits
        self.table = table
        self.unit = unit

    def is_dense(self) -> Bool:
        return self.dtype.is_floating_point()

    def has_table(self) -> Bool:
        return self.table[1] != 0

    def largest_code(self) -> Int:
        """The largest code, or entry of the table."""
        if self.has_table():
            return Int(self.table.reduce_max())
        return (1 << (self.low_bits + self.extra_bits)) - 1

    def block_bytes(self) -> Int:
        return ROWS * self.row_bytes

    def parts(self) -> Int:
        """Parts of a quantized block."""
        return self.block_columns // PART

    def minima_at(self) -> Int:
        """Where a block's minima begin; its scales begin at 0."""
        return ROWS * 2

    def sub_scales_at(self) -> Int:
        return self.minima_at() + (ROWS * 2 if self.has_minima else 0)

    def sub_scales(self) -> Int:
        """Sub-scales of a row, if it has any."""
        return self.block_columns // self.scale_columns

    def codes_at(self) -> Int:
        """Where part 0 begins."""
        if self.is_dense():
            return 0
        var each = self.sub_scale_bits * (2 if self.has_minima else 1)
        return self.sub_scales_at() + ROWS * self.sub_scales() * each // 8

    def part_bytes(self) -> Int:
        """Bytes from one part to the next."""
        return ROWS * PART * (self.low_bits + self.extra_bits) // 8

    def extra_bits_at(self) -> Int:
        """Where in a part the extra bits begin."""
        return ROWS * PART * self.low_bits // 8

    def adds_up(self) -> Bool:
        """Whether the pieces of a block are as long as 16 GGUF blocks."""
        var bits = ROWS * self.block_columns * (self.low_bits + self.extra_bits)
        return self.codes_at() + bits // 8 == self.block_bytes()


# A weight's `kind` is its index here, and its value in `packing.Encoding`.
comptime ENCODINGS = [
    Encoding("F32", .float32, block_columns=1, row_bytes=4, low_bits=32),
    Encoding("BF16", .bfloat16, block_columns=2, row_bytes=4, low_bits=16),
    Encoding("F16", .float16, block_columns=1, row_bytes=2, low_bits=16),
    Encoding("Q8_0", block_columns=32, row_bytes=34, low_bits=8, bias=128),
    Encoding("Q4_0", block_columns=32, row_bytes=18, low_bits=4, bias=8),
    Encoding("Q4_1", block_columns=32, row_bytes=20, low_bits=4, has_minima=True),
    Encoding(
        "Q4_K",
        block_columns=256,
        row_bytes=144,
        low_bits=4,
        has_minima=True,
        sub_scale_bits=6,
    ),
    Encoding(
        "Q5_K",
        block_columns=256,
        row_bytes=176,
        low_bits=4,
        extra_bits=1,
        has_minima=True,
        sub_scale_bits=6,
    ),
    Encoding(
        "Q6_K",
        block_columns=256,
        row_bytes=210,
        low_bits=4,
        extra_bits=2,
        bias=32,
        scale_columns=16,
        sub_scale_bits=8,
    ),
    Encoding(
        "Q5_0", block_columns=32, row_bytes=22, low_bits=4, extra_bits=1, bias=16
    ),
    Encoding(
        "Q5_1",
        block_columns=32,
        row_bytes=24,
        low_bits=4,
        extra_bits=1,
        has_minima=True,
    ),
    Encoding(
        "IQ4_NL",
        block_columns=32,
        row_bytes=18,
        low_bits=4,
        bias=128,
        table=IQ4,
    ),
    Encoding(
        "IQ4_XS",
        block_columns=256,
        row_bytes=136,
        low_bits=4,
        bias=128,
        sub_scale_bits=6,
        table=IQ4,
    ),
    Encoding(
        "Q2_K",
        block_columns=256,
        row_bytes=84,
        low_bits=2,
        has_minima=True,
        scale_columns=16,
        sub_scale_bits=4,
    ),
    Encoding(
        "Q3_K",
        block_columns=256,
        row_bytes=110,
        low_bits=2,
        extra_bits=1,
        bias=4,
        scale_columns=16,
        sub_scale_bits=6,
    ),
    Encoding("TQ2_0", block_columns=256, row_bytes=66, low_bits=2, bias=1),
    Encoding(
        "IQ2_IN_Q3_K",
        block_columns=256,
        row_bytes=110,
        low_bits=2,
        extra_bits=1,
        bias=43,
        scale_columns=16,
        sub_scale_bits=6,
        table=IQ2,
        unit=0.125,
    ),
    Encoding(
        "IQ3_XXS_IN_IQ4_XS",
        block_columns=256,
        row_bytes=136,
        low_bits=4,
        bias=62,
        sub_scale_bits=6,
        table=IQ3_XXS,
        unit=0.25,
    ),
    Encoding(
        "IQ3_S_IN_IQ4_XS",
        block_columns=256,
        row_bytes=136,
        low_bits=4,
        bias=15,
        sub_scale_bits=6,
        table=IQ3_S,
    ),
    Encoding(
        "BF16_IN_12_BITS", .bfloat16, block_columns=8, row_bytes=12, low_bits=12
    ),
]
# A kind: what a panel in 12 bits becomes when it is unpacked.
comptime BF16 = 1
comptime KINDS = len(materialize[ENCODINGS]())


def encoding[kind: Int]() -> Encoding:
    """Returns a row of `ENCODINGS`; keep it `comptime`."""
    comptime found = materialize[ENCODINGS]()[kind]
    comptime assert found.adds_up(), "a block is not as long as 16 GGUF blocks"
    return found


def is_dense[kind: Int]() -> Bool:
    """Whether a weight is a floating-point number, not a code."""
    return encoding[kind]().is_dense()


def is_narrow[kind: Int]() -> Bool:
    """Whether a weight is bfloat16 in 12 bits."""
    return is_dense[kind]() and encoding[kind]().low_bits == 12


def narrow_lines(columns: Int) -> Int:
    """How many lines of a panel in 12 bits can be kept whole."""
    return max(4, columns // 64)


def narrow_head(columns: Int) -> Int:
    """Bytes before the first group of a panel in 12 bits."""
    return ceildiv(4 * (narrow_lines(columns) + 2), LINE) * LINE


def panel_bytes[kind: Int](columns: Int) -> Int:
    """Bytes of a panel of a weight with this many columns."""
    comptime e = encoding[kind]()
    comptime block_columns = e.block_columns
    comptime block_bytes = e.block_bytes()
    comptime if is_narrow[kind]():
        var beside = narrow_head(columns) + narrow_lines(columns) * LINE
        return beside + columns // block_columns * block_bytes
    elif e.is_dense():
        return ceildiv(columns, block_columns) * block_bytes
    else:
        # The same count as the loop over a panel's blocks, for the compiler.
        return columns // block_columns * block_bytes
