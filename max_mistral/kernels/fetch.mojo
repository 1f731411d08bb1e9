"""Fetches weights before they are read.

A thread that does much with a line has too few reads under way to keep memory busy,
and the CPU's own prefetcher does not make up for it. One that does little with it is up
to a quarter slower if it fetches all lines (Zen 4): there the CPU's prefetcher does
better, but stops at each page's end, so it gets the first line of a page in advance.
Each kernel says from how many rows on it fetches all.
"""

from std.math import ceildiv
from std.sys.intrinsics import PrefetchOptions, prefetch

from .layout import LINE

# How far ahead, in bytes: `AHEAD` into the second level of cache; `NEAR` into the
# first, which is small, so that what is fetched has to be read soon.
comptime AHEAD = 8192
comptime NEAR = 3072
# What the CPU's own prefetcher stays within, however large the system's pages are; and
# how many pages ahead one begins.
comptime PAGE = 4096
comptime PAGES_AHEAD = 3
# Into the second level, where it does not push out what is in use.
comptime SECOND = PrefetchOptions().for_read().medium_locality()
comptime FIRST = PrefetchOptions().for_read().high_locality()


@inline(.always)
def fetch_ahead[bytes: Int](w: ImmPointer[UInt8, _]):
    """Fetches `bytes` from `AHEAD` after `w`; what is not there is not fetched."""
    _fetch[bytes, SECOND](w.unsafe_offset(AHEAD))


@inline(.always)
def fetch_near[bytes: Int](w: ImmPointer[UInt8, _]):
    """The same from `NEAR`, into the first level, from which AMX loads tiles."""
    _fetch[bytes, FIRST](w.unsafe_offset(NEAR))


@inline(.always)
def fetch_page(w: ImmPointer[UInt8, _]):
    """Fetches the first line of the page that is `PAGES_AHEAD` after that of `w`."""
    var begin = PAGES_AHEAD * PAGE - Int(w) % PAGE
    _fetch[LINE, SECOND](w.unsafe_offset(begin))


@inline(.always)
def fetch_later[bytes: Int](w: ImmPointer[UInt8, _]):
    """Fetches `bytes` that will be read when this thread has waited."""
    _fetch[bytes, SECOND](w)


@inline(.always)
def _fetch[bytes: Int, options: PrefetchOptions](w: ImmPointer[UInt8, _]):
    comptime for line in range(ceildiv(bytes, LINE)):
        prefetch[options](w.unsafe_offset(line * LINE))
