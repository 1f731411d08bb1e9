"""Where a request's keys and values are in MAX's paged KV cache."""

from extensibility import InputTensor
from std.math import ceildiv

from .softmax import Lanes, W, Writes, padded


@fieldwise_init
struct Cache[dtype: DType, origin: ImmOrigin, table: ImmOrigin](
    ImplicitlyCopyable
):
    """One layer of the paged KV cache, as one request sees it."""

    var blocks: ImmPointer[Scalar[Self.dtype], Self.origin]
    """`[pages, 2, layers, page_size, kv_heads, head_dim]`."""
    var pages: ImmPointer[UInt32, Self.table]
    """The request's pages, in order."""
    var page_stride: Int
    """Lanes from one page to the next."""
    var page_size: Int
    """Tokens in a page."""
    var layer: Int
    var layers: Int
    var width: Int
    """Lanes of a token's keys: `kv_heads * head_dim`."""

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
    def offset(self, at: Int) -> Int:
        """Where in `blocks` the keys of the token `at` are, all its heads."""
        var page = Int(self.pages.unsafe_load(at // self.page_size))
        var row = self.layer * self.page_size + at % self.page_size
        return page * self.page_stride + row * self.width

    @inline(.always)
    def values_offset(self) -> Int:
        """Lanes from a token's keys to its values."""
        return self.layers * self.page_size * self.width


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


@inline(.always)
def load[
    dtype: DType
](rows: ImmPointer[Scalar[dtype], _], at: Int) -> Lanes:
    """Reads a vector of keys or values."""
    return rows.unsafe_load[width=W](at).cast[DType.float32]()


@inline(.always)
def copy_rows[
    dtype: DType, //, head_dim: Int
](dst: Writes, src: ImmPointer[Scalar[dtype], _], stride: Int, rows: Int):
    """Copies rows that lie `stride` apart to `[rows, padded(head_dim)]`."""
    comptime whole = head_dim // W
    for row in range(rows):
        var d = dst.unsafe_offset(row * padded(head_dim))
        var s = src.unsafe_offset(row * stride)
        comptime for i in range(whole):
            d.unsafe_store(i * W, load(s, i * W))
        comptime if head_dim % W != 0:
            d.unsafe_store(whole * W, Lanes(0))
            for i in range(whole * W, head_dim):
                d.unsafe_store(i, s.unsafe_load(i).cast[DType.float32]())
