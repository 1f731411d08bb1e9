"""The encodings of packed weights: the table, and the sizes that follow from it."""

from std.math import ceildiv

from .layout import LINE, PART, ROWS

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
    """Bytes of one row in a block; of GGUF's, the same as in a file."""
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

    def has_nibbles(self) -> Bool:
        """Whether a byte is two codes that are numbers."""
        return self.low_bits == 4 and not self.extra_bits and not self.has_table()

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
        low_bits=6,
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
# Kinds: weights in 12 bits, and what they become when they are unpacked.
comptime BF16 = 1
comptime NARROW = 19
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
    return kind == NARROW


def narrow_lines(columns: Int) -> Int:
    """How many lines of a panel in 12 bits can be kept whole."""
    return max(4, columns // 64)


def narrow_head(columns: Int) -> Int:
    """Bytes before the first group of a panel in 12 bits."""
    return LINE + ceildiv(4 * (narrow_lines(columns) + 1), LINE) * LINE


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
