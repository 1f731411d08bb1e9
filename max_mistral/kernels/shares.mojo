"""Weights cut into what a thread multiplies at a time."""

from std.math import ceildiv

from .layout import ROWS
from .multiply import Matrix

# Bytes of weights that a thread takes at a time. Large shares are read in order;
# the last ones are small, so that no thread waits long for another.
comptime LARGEST_SHARE = 256 * 1024
comptime SMALLEST_SHARE = 32 * 1024


@fieldwise_init
struct Share(ImplicitlyCopyable):
    """Panels `begin` to `end - 1` of one of the weights."""

    var matrix: Int
    """Which weight."""
    var begin: Int
    var end: Int


def cut(matrices: List[Matrix], unit: Int, threads: Int) -> List[Share]:
    """Cuts the weights into multiples of `unit` panels, smaller towards the end.
    """
    var left = 0
    for matrix in matrices:
        left += ceildiv(matrix.rows, ROWS) * matrix.panel
    # Those of the last size come on top.
    var shares = List[Share](
        capacity=len(matrices) + left // LARGEST_SHARE + 16 * threads
    )
    for i in range(len(matrices)):
        var panel = matrices[i].panel
        var panels = ceildiv(matrices[i].rows, ROWS)
        var begin = 0
        while begin < panels:
            var size = min(LARGEST_SHARE, left // (2 * threads))
            size = max(SMALLEST_SHARE, size)
            var count = max(1, size // (panel * unit)) * unit
            var end = min(panels, begin + count)
            shares.append(Share(i, begin, end))
            left -= (end - begin) * panel
            begin = end
    return shares^
