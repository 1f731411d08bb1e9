"""How a packed weight lies in memory.

A `[N, K]` weight is cut into panels of 16 output rows, one after another; the
last panel is padded with zero rows. Inside a panel the rows are interleaved, so
that one SIMD vector holds the same column (or columns) of all 16 rows. A panel
is a sequence of blocks, and `packing.py` writes them byte for byte.

Shapes below are in bytes unless they name a dtype. The last axis is the fastest.

Dense: a block is one column, of bfloat16 two (an odd K is padded with zeros).

  F32    [16] float32
  F16    [16] float16
  BF16   [16][2] bfloat16

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
row lie side by side, as x86's `vpdpbusd` and Arm's `udot` take them.

  8-bit lines, [8][16][4] (Q8_0)
      line i, byte 4 r + j:  column 4 i + j

  4-bit lines, [4][16][4] (all others)
      line i, byte 4 r + j:  | column 16 + 4 i + j | column 4 i + j |
                              bits 7 to 4           bits 3 to 0

  1 extra bit, [16][4] (Q5_K's fifth bits)
      byte 4 r + j:          bit i belongs to column 4 i + j, for i in 0 to 7

  2 extra bits, [2][16][4] (Q6_K's upper bits)
      line h, byte 4 r + j:  bits 2 i and 2 i + 1 belong to column 16 h + 4 i + j

Sub-scales are integers that multiply d; sub-minima multiply m.

  6 bits (Q4_K, Q5_K), one of each per 32 columns:
      [8][16]      byte p of a row: | sub-minimum's low 4 bits | sub-scale's |
      [16] uint32  bits 4 p to 4 p + 3:
                                    | sub-minimum's upper 2 bits | sub-scale's |
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
