"""How a packed weight lies in memory.

A `[N, K]` weight is cut into panels of 16 output rows, one after another; the
last panel is padded with copies of its last row. Inside a panel the rows are
interleaved, so that one SIMD vector holds the same column (or columns) of all 16 rows.
A panel is a sequence of blocks, and `packing.py` writes them byte for byte.

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

  6-bit lines, [2][3][16][4] (Q6_K)
      line 3 h + i, byte 4 r + j:  | column 16 h + 12 + j | column 16 h + 4 i + j |
                                    two of its bits, 7 to 6   bits 5 to 0
      The first of the three has the lowest two.

  4-bit lines, [4][16][4] (all others)
      line i, byte 4 r + j:  | column 16 + 4 i + j | column 4 i + j |
                              bits 7 to 4           bits 3 to 0

  1 extra bit, [16][4] (Q3_K's third, the fifth of Q5_0, Q5_1 and Q5_K)
      byte 4 r + j:          bit i belongs to column 4 i + j, for i in 0 to 7

The codes of IQ4_NL, IQ4_XS and the three `..._IN_...` are places in a table of
weights. Those three are no types of GGUF: a code of llama.cpp's other IQ types says
what 4 or 8 columns are together, so `gguf_encode.py` takes them apart, into blocks
of Q3_K and IQ4_XS that have a table and a `unit` of their own.

Sub-scales are integers that multiply d; sub-minima multiply m.

  4 bits, with sub-minima (Q2_K), one of each per 16 columns:
      [16][16]     byte s of a row: | sub-minimum | sub-scale |
  6 bits, with sub-minima (Q4_K, Q5_K), one of each per 32 columns:
      [8][16]      byte p of a row: | sub-minimum's low 4 bits | sub-scale's |
      [4][16]      byte p of a row, bits 7 to 4 and 3 to 0, of p + 4 and of p:
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
              384   6-bit lines   [2][3][16][4]
    672     384   part 1       columns 32 to 63
    ...
   2976     384   part 7       columns 224 to 255

and a weight is `d * sub-scale * (code - 32)`.

To add a GGUF type: give it a row at the end of `ENCODINGS` (`encodings.mojo`), and if
its bits lie in a way that no other type has, teach `codes.mojo` or `scales.mojo` to
read it. In Python give it a row in `packing.Encoding` and `_PIECES`.
`tests/unit/test_kernels.py` compares the two tables and runs the kernels on every row.
"""

comptime ROWS = 16
comptime Floats = SIMD[DType.float32, ROWS]
# Columns of a part, and bytes of one of its lines.
comptime PART = 32
comptime LINE = 4 * ROWS
