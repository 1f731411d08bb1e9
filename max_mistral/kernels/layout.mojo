"""How a weight matrix lies in memory: panels of 16 output rows.

A panel holds 16 rows of a `[N, K]` weight so that one SIMD vector has one
column of all 16. Panels follow one another; the last one is padded with zero
rows. `packing.py` writes these layouts, byte for byte:

  float32   [K][16] float32
  bfloat16  [ceil(K / 2)][16][2] bfloat16; an odd K is padded with a zero column
  float16   [K][16] float16

The quantized ones are sequences of blocks. `codes` are unsigned: a weight is
`scale * code - minimum`. Four columns of a row lie side by side, as x86's
`vpdpbusd` and Arm's `udot` take them: `[8][16][4]` are 32 columns. Nibbles
hold column `k` low and column `k + 16` of the same 32 high, `[4][16][4]`.

  Q8_0  32 columns:  [16] float16 scales, [8][16][4] codes (code - 128)
  Q4_0  32 columns:  [16] float16 scales, [4][16][4] nibbles (code - 8)
  Q4_1  32 columns:  [16] float16 scales, [16] float16 minima, [4][16][4] nibbles
  Q4_K  256 columns: [16] float16 d, [16] float16 dmin, [8][16] bytes with the
                     low four bits of a scale low and of a minimum high, [16]
                     uint32 with their upper two bits (nibble p: scale p's low,
                     minimum p's high), [8] x [4][16][4] nibbles
  Q5_K  the same, but each 32 columns' nibbles are followed by [16][4] bytes of
        fifth bits: bit i of byte j belongs to column 4 i + j
  Q6_K  256 columns: [16] float16 d, [16][16] int8 scales (one per 16 columns),
                     [8] x ([4][16][4] nibbles, [2][16][4] bytes: bit pair i of
                     byte j of line h belongs to column 16 h + 4 i + j (code - 32))
"""

comptime F32 = 0
comptime BF16 = 1
comptime F16 = 2
comptime Q8_0 = 3
comptime Q4_0 = 4
comptime Q4_1 = 5
comptime Q4_K = 6
comptime Q5_K = 7
comptime Q6_K = 8

comptime ROWS = 16
comptime Floats = SIMD[DType.float32, ROWS]


def is_dense[kind: Int]() -> Bool:
    """Whether a weight is a floating-point number, not a code."""
    return kind <= F16


def block_columns[kind: Int]() -> Int:
    """Columns in a quantized block."""
    return 32 if kind <= Q4_1 else 256


def block_bytes[kind: Int]() -> Int:
    """Bytes of a quantized block of 16 rows."""
    comptime if kind == Q8_0:
        return 32 + 512
    elif kind == Q4_0:
        return 32 + 256
    elif kind == Q4_1:
        return 64 + 256
    elif kind == Q4_K:
        return 64 + 192 + 2048
    elif kind == Q5_K:
        return 64 + 192 + 2048 + 512
    else:
        return 32 + 256 + 2048 + 1024


def panel_bytes[kind: Int](columns: Int) -> Int:
    """Bytes of 16 rows of a weight with this many columns."""
    comptime if kind == F32:
        return columns * 64
    elif kind == BF16:
        return (columns + 1) // 2 * 64
    elif kind == F16:
        return columns * 32
    else:
        return columns // block_columns[kind]() * block_bytes[kind]()
