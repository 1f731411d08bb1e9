"""How threads share the attention of a step."""

from std.math import ceildiv

from .rows import SPAN
from .spans import TILE
from .wanted import first_wanted


@fieldwise_init
struct Task(ImplicitlyCopyable):
    """Some tokens of a request by some spans of its keys."""

    var request: Int
    var token: Int
    """The first one's place among all requests' tokens."""
    var tokens: Int
    var position: Int
    """The first one's place in its request."""
    var begin: Int
    """The first span's first key."""
    var spans: Int
    """How many spans there are from `begin`."""
    var kv_begin: Int
    """The first head of keys."""
    var kv_end: Int
    var slot: Int
    """Where the one span's states are kept until the others' are there too; -1
    if this task does all of its tokens' spans."""


@fieldwise_init
struct Merge(ImplicitlyCopyable):
    """A token whose spans are in slots."""

    var token: Int
    var slot: Int
    """The first span's."""
    var spans: Int


struct Plan(Movable):
    """How the tokens of a step are shared out."""

    var tasks: List[Task]
    var merges: List[Merge]
    var slots: Int

    def __init__(
        out self,
        row_offsets: ImmPointer[UInt32, _],
        cache_lengths: ImmPointer[UInt32, _],
        requests: Int,
        window: Int,
        kv_heads: Int,
        threads: Int,
        last_tokens: Int,
    ):
        """Makes tasks of each request's last tokens, by heads where they would be too few
        for all threads; of one alone, by spans and heads.
        """
        self.tasks = List[Task]()
        self.merges = List[Merge]()
        self.slots = 0
        var tiles = 0
        for request in range(requests):
            var start = Int(row_offsets.unsafe_load(request))
            var end = Int(row_offsets.unsafe_load(request + 1))
            var first = first_wanted(start, end, last_tokens)
            tiles += ceildiv(end - first, TILE)
        # Twice as many tasks as threads, so that none waits long for another.
        var tile_parts = min(kv_heads, ceildiv(2 * threads, max(1, tiles)))
        var parts = min(threads, kv_heads)
        for request in range(requests):
            var start = Int(row_offsets.unsafe_load(request))
            var end = Int(row_offsets.unsafe_load(request + 1))
            var first = first_wanted(start, end, last_tokens)
            var cached = Int(cache_lengths.unsafe_load(request))
            for token in range(first, end, TILE):
                var count = min(TILE, end - token)
                var position = cached + token - start
                var begin = max(0, position - window + 1) // SPAN * SPAN
                var spans = ceildiv(position + count - begin, SPAN)
                var task = Task(
                    request, token, count, position, begin, spans, 0, kv_heads, -1
                )
                if end - first > 1:
                    self._append_parts(task, tile_parts, kv_heads)
                    continue
                self.merges.append(Merge(token, self.slots, spans))
                for i in range(spans):
                    task.begin = begin + i * SPAN
                    task.spans = 1
                    task.slot = self.slots
                    self.slots += 1
                    self._append_parts(task, parts, kv_heads)

    def _append_parts(mut self, task: Task, parts: Int, kv_heads: Int):
        """Appends a task, cut by heads of keys into `parts`."""
        var one = task
        for part in range(parts):
            one.kv_begin = part * kv_heads // parts
            one.kv_end = (part + 1) * kv_heads // parts
            self.tasks.append(one)
