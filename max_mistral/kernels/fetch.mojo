"""Fetches weights before they are read.

A thread that does more with a line than to read it has too few reads under way to
keep memory busy, and the CPU's own prefetcher does not make up for it.
"""

from std.math import ceildiv
from std.sys.intrinsics import PrefetchOptions, prefetch

from .layout import LINE

# How far ahead: far enough for memory to answer, near enough to stay in the first
# level of cache.
comptime AHEAD = 3072
comptime SOON = PrefetchOptions().for_read().high_locality()
# Into the second level of cache, where it does not push out what is in use.
comptime LATER = PrefetchOptions().for_read().medium_locality()


@inline(.always)
def fetch_ahead[bytes: Int](w: ImmPointer[UInt8, _]):
    """Fetches `bytes` from `AHEAD` after `w`; what is not there is not fetched."""
    comptime for line in range(ceildiv(bytes, LINE)):
        prefetch[SOON](w.unsafe_offset(AHEAD + line * LINE))


@inline(.always)
def fetch_later[bytes: Int](w: ImmPointer[UInt8, _]):
    """Fetches `bytes` that will be read when this thread has waited."""
    comptime for line in range(ceildiv(bytes, LINE)):
        prefetch[LATER](w.unsafe_offset(line * LINE))
