"""The tokens of a step whose outputs are read."""


@inline(.always)
def first_wanted(begin: Int, end: Int, last_tokens: Int) -> Int:
    """The first of a request's tokens that is among its last ones.

    Args:
        begin: The request's first token.
        end: Where its tokens end.
        last_tokens: How many of them are wanted.
    """
    return max(begin, end - last_tokens)


struct Wanted(Sized):
    """Each request's last tokens, in order."""

    var _tokens: List[Int]

    def __init__(
        out self, row_offsets: ImmPointer[UInt32, _], requests: Int, last_tokens: Int
    ):
        """Lists them.

        Args:
            row_offsets: Where each request's tokens begin and end, `[requests + 1]`.
            requests: How many there are.
            last_tokens: How many of each one's are wanted.
        """
        self._tokens = List[Int](capacity=Int(row_offsets.unsafe_load(requests)))
        for request in range(requests):
            var begin = Int(row_offsets.unsafe_load(request))
            var end = Int(row_offsets.unsafe_load(request + 1))
            for token in range(first_wanted(begin, end, last_tokens), end):
                self._tokens.append(token)

    def __len__(self) -> Int:
        return len(self._tokens)

    @inline(.always)
    def __getitem__(self, i: Int) -> Int:
        """A token's place in its step."""
        return self._tokens.unsafe_ptr().unsafe_load(i)
