"""x86's AMX: registers of 16 rows of 64 bytes, called tiles, and products of two tiles.

`c += a @ b` takes `a` by rows of 32 bfloat16, and `b` as packed bfloat16 weights lie in
memory (`layout.mojo`): one of its rows is a line, two columns of 16 output rows. `c` is
float32, `[rows][16]`.

A process has to ask Linux for the tiles before it uses them (`kernels/__init__.py`).
"""

from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

from .layout import LINE

comptime TILE_ROWS = 16
"""Rows of a tile, at most."""
comptime TILE_BYTES = TILE_ROWS * LINE
# Which of the eight tiles are `a` of the first rows and of the others, and where those
# of `b` begin. The first four are `c`.
comptime FIRST_A = 4
comptime FIRST_B = 6


def has_bfloat16() -> Bool:
    """Whether this CPU has AMX's products of bfloat16."""
    return (
        CompilationTarget.has_avx512f()
        and CompilationTarget._has_feature["amx-tile"]()
        and CompilationTarget._has_feature["amx-bf16"]()
    )


@inline(.always)
def configure(rows: Int):
    """Sets the sizes of this thread's tiles.

    Args:
        rows: Of `a` and `c`, the first ones and the others together; at most 32.
    """
    var sizes = SIMD[DType.uint8, 64](0)
    sizes[0] = 1
    comptime for tile in range(8):
        comptime other = tile == FIRST_A + 1 or 2 <= tile < FIRST_A
        var most = TILE_ROWS
        comptime if tile < FIRST_B:
            # A tile has one row at least.
            most = min(most, max(1, rows - TILE_ROWS if other else rows))
        sizes[16 + 2 * tile] = UInt8(LINE)
        sizes[48 + tile] = UInt8(most)
    var stored = Array[SIMD[DType.uint8, 64], 1](fill=sizes)
    llvm_intrinsic["llvm.x86.ldtilecfg", NoneType](stored.unsafe_ptr())
    _ = stored^


@inline(.always)
def release():
    """Frees this thread's tiles: Linux need not keep them."""
    llvm_intrinsic["llvm.x86.tilerelease", NoneType]()


@inline(.always)
def clear[tile: Int]():
    """Fills a tile with zeros."""
    llvm_intrinsic["llvm.x86.tilezero", NoneType](Int8(tile))


@inline(.always)
def load[tile: Int](source: ImmPointer[UInt8, _]):
    """Loads a tile from rows of 64 bytes, one after another."""
    llvm_intrinsic["llvm.x86.tileloadd64", NoneType](Int8(tile), source, LINE)


@inline(.always)
def store[tile: Int](target: MutPointer[UInt8, _]):
    """Stores a tile as `load` takes it."""
    llvm_intrinsic["llvm.x86.tilestored64", NoneType](Int8(tile), target, LINE)


@inline(.always)
def add_product[c: Int, a: Int, b: Int]():
    """Adds `a @ b` to `c`."""
    llvm_intrinsic["llvm.x86.tdpbf16ps", NoneType](Int8(c), Int8(a), Int8(b))
