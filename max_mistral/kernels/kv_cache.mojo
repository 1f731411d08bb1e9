"""Where a request's keys and values are in MAX's paged KV cache."""

from .softmax import Lanes, Reads, W, Writes, padded


@fieldwise_init
struct Cache[origin: ImmOrigin, table: ImmOrigin](ImplicitlyCopyable):
    """One layer of the paged KV cache, as one request sees it."""

    var blocks: ImmPointer[Float32, Self.origin]
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
    def offset(self, at: Int) -> Int:
        """Where in `blocks` the keys of the token `at` are, all its heads."""
        var page = Int(self.pages.unsafe_load(at // self.page_size))
        var row = self.layer * self.page_size + at % self.page_size
        return page * self.page_stride + row * self.width

    @inline(.always)
    def values_offset(self) -> Int:
        """Lanes from a token's keys to its values."""
        return self.layers * self.page_size * self.width


@inline(.always)
def copy_rows[head_dim: Int](dst: Writes, src: Reads, stride: Int, rows: Int):
    """Copies rows that lie `stride` apart to `[rows, padded(head_dim)]`."""
    comptime whole = head_dim // W
    for row in range(rows):
        var d = dst.unsafe_offset(row * padded(head_dim))
        var s = src.unsafe_offset(row * stride)
        comptime for i in range(whole):
            d.unsafe_store(i * W, s.unsafe_load[width=W](i * W))
        comptime if head_dim % W != 0:
            d.unsafe_store(whole * W, Lanes(0))
            for i in range(whole * W, head_dim):
                d.unsafe_store(i, s.unsafe_load(i))
