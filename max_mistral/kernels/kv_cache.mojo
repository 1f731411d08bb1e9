"""Where a request's keys and values are in MAX's paged KV cache.

MAX gives a layer its part of each page and never looks into it; there they lie as
attention reads them, in words of 32 bits: one float32, two bfloat16, or four codes in
int8 (`kv_codes.mojo`).

  keys     [kv_heads][page_size / 16][head_dim / in_word][16][in_word]
  values   [kv_heads][page_size / in_word][head_dim][in_word]

A vector of keys' words is of as many keys, of values' words of as many lanes, so
neither has to be added up across. `in_word` are 1, 2 or 4 numbers. Behind all heads'
codes are their scales, float32 `[kv_heads][page_size]`.
"""

from extensibility import InputTensor
from std.math import ceildiv
from std.sys import size_of

from .kv_codes import SCALE, place, word_place

# Keys whose words alternate.
comptime KEYS = 16


def in_word[dtype: DType]() -> Int:
    """How many of the cache's numbers are in 32 bits."""
    comptime known = dtype == .float32 or dtype == .bfloat16 or dtype == .int8
    comptime assert known, "no such KV cache"
    return 4 // size_of[dtype]()


def room[dtype: DType](head_dim: Int) -> Int:
    """How many numbers a head takes of a token, its scale included."""
    return head_dim + SCALE if dtype == .int8 else head_dim


@inline(.always)
def number_at[dtype: DType](number: Int) -> Int:
    """Where a number of a word is, from its first."""
    return place(number) if dtype == .int8 else number


@inline(.always)
def word_at[dtype: DType](word: Int) -> Int:
    """Where a word's first number is, from the first word's."""
    return word_place(word) if dtype == .int8 else word * in_word[dtype]()


@fieldwise_init
struct Cache[dtype: DType, origin: ImmOrigin, table: ImmOrigin](
    ImplicitlyCopyable
):
    """One layer of the paged KV cache, as one request sees it."""

    var blocks: ImmPointer[Scalar[Self.dtype], Self.origin]
    """`[pages, 2, layers, page_size * of_token]`."""
    var pages: ImmPointer[UInt32, Self.table]
    """The request's pages, in order."""
    var page_stride: Int
    """Numbers from one page to the next."""
    var page_size: Int
    """Tokens in a page."""
    var layer: Int
    var layers: Int
    var width: Int
    """Numbers of a token's keys: `kv_heads * head_dim`."""
    var of_token: Int
    """Numbers of a token's keys and of their scales."""

    @inline(.always)
    def of_request(self, request: Int, columns: Int) -> Self:
        """The first request's cache as another sees it.

        Args:
            request: Which.
            columns: How many pages the table has for each request.
        """
        var other = self
        other.pages = self.pages.unsafe_offset(request * columns)
        return other

    @inline(.always)
    def _part(self, at: Int) -> Int:
        """Where in `blocks` the layer's keys are, in the page of the token `at`."""
        var page = Int(self.pages.unsafe_load(at // self.page_size))
        return page * self.page_stride + self.layer * self.page_size * self.of_token

    @inline(.always)
    def _page(self, at: Int, head: Int, head_dim: Int) -> Int:
        """Where in `blocks` the keys of a head are."""
        return self._part(at) + head * self.page_size * head_dim

    @inline(.always)
    def step(self, at: Int, head: Int, head_dim: Int) -> Int:
        """Where in `blocks` the keys from `at` on begin, the first of `KEYS`."""
        return self._page(at, head, head_dim) + at % self.page_size * head_dim

    @inline(.always)
    def key(self, at: Int, head: Int, head_dim: Int) -> Int:
        """Where a key's first word is; the others are `KEYS` words apart."""
        var row = at % self.page_size
        return (
            self._page(at, head, head_dim)
            + row // KEYS * KEYS * head_dim
            + word_at[Self.dtype](row % KEYS)
        )

    @inline(.always)
    def value(self, at: Int, head: Int, head_dim: Int) -> Int:
        """Where a value's first number is; the others are at `word_at` from it."""
        var row = at % self.page_size
        comptime words = in_word[Self.dtype]()
        return (
            self._page(at, head, head_dim)
            + self.values_offset()
            + row // words * words * head_dim
            + number_at[Self.dtype](row % words)
        )

    @inline(.always)
    def values_offset(self) -> Int:
        """Numbers from a page's keys to its values."""
        return self.layers * self.page_size * self.of_token

    @inline(.always)
    def key_scale(self, at: Int, head: Int) -> Int:
        """Where in `blocks`, if it were float32, a key's scale is; the next key's is
        the next in its page."""
        var scales = (self._part(at) + self.page_size * self.width) // SCALE
        return scales + head * self.page_size + at % self.page_size

    @inline(.always)
    def value_scale(self, at: Int, head: Int) -> Int:
        """The same of a value."""
        return self.key_scale(at, head) + self.values_offset() // SCALE


def check_step(
    tokens: Int,
    row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
    cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
    lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
    pages: Int,
    page_size: Int,
    positions: Int,
) raises:
    """Raises if a step's inputs lead outside of its tokens, of the cache or of the
    table of rotary embeddings.

    Args:
        tokens: How many there are in this step.
        row_offsets: Where each request's tokens begin and end, `[requests + 1]`.
        cache_lengths: Tokens of earlier steps, `[requests]`.
        lookup_table: Each request's pages in order, `[requests, most pages]`.
        pages: How many the cache has.
        page_size: Tokens in a page.
        positions: How many the table of rotary embeddings has.
    """
    if page_size % KEYS != 0:
        raise Error("pages are of ", page_size, " tokens, not of whole ", KEYS)
    var requests = cache_lengths.dim_size(0)
    var columns = lookup_table.dim_size(1)
    var offsets = row_offsets.unsafe_ptr()
    if row_offsets.dim_size(0) != requests + 1:
        raise Error(
            "there are ",
            row_offsets.dim_size(0),
            " row offsets, but with ",
            requests,
            " requests there should be ",
            requests + 1,
        )
    var begin = Int(offsets.unsafe_load(0))
    var last = Int(offsets.unsafe_load(requests))
    if begin != 0 or last != tokens:
        raise Error(
            "the row offsets go from ",
            begin,
            " to ",
            last,
            ", but should go from 0 to ",
            tokens,
            ", the number of tokens",
        )
    for request in range(requests):
        var end = Int(offsets.unsafe_load(request + 1))
        if end < begin:
            raise Error("the row offsets fall from ", begin, " to ", end)
        var length = (
            Int(cache_lengths.unsafe_ptr().unsafe_load(request)) + end - begin
        )
        if length > positions:
            raise Error(
                "request ",
                request,
                " has ",
                length,
                " tokens, but the rotary embeddings have ",
                positions,
                " positions",
            )
        var need = ceildiv(length, page_size)
        if need > columns:
            raise Error(
                "request ",
                request,
                " has ",
                length,
                " tokens, but the lookup table has pages for ",
                columns * page_size,
            )
        var row = lookup_table.unsafe_ptr().unsafe_offset(request * columns)
        for i in range(need):
            var page = Int(row.unsafe_load(i))
            if page >= pages:
                raise Error(
                    "request ",
                    request,
                    " has the page ",
                    page,
                    ", but the KV cache has the pages 0 to ",
                    pages - 1,
                )
        begin = end

