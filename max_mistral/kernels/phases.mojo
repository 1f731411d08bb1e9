"""Work that threads do together, in phases that need the one before.

A phase is cut into shares. A thread takes the next share when it is done with one:
memory serves some threads faster than others. It waits for the phase before, but only
for shares that were taken, and so by threads that run: none waits for one that the
system has not started. While it waits it fetches what it is likely to read first.
"""

from std.atomic import Atomic
from std.ffi import external_call
from std.sys import llvm_intrinsic
from std.sys.info import CompilationTarget

# Counters are two lines of cache apart, so that none slows another down.
comptime STRIDE = 16
# How often a thread looks before it lets another one have its CPU.
comptime PATIENCE = 4096


struct Phases:
    """How far each phase is."""

    var shares: List[Int]
    """Of each phase."""
    var _counters: List[Int64]
    """For each phase, how many shares are taken, and how many are done."""

    def __init__(out self, var shares: List[Int]):
        self._counters = List[Int64](length=2 * len(shares) * STRIDE, fill=0)
        self.shares = shares^

    def _counter(self, i: Int) -> MutPointer[Atomic[Int64], MutUntrackedOrigin]:
        return (
            self._counters.unsafe_ptr()
            .unsafe_offset(i * STRIDE)
            .unsafe_mut_cast[True]()
            .unsafe_origin_cast[MutUntrackedOrigin]()
            .unsafe_bitcast[Atomic[Int64]]()
        )

    def most_shares(self) -> Int:
        """Shares of the phase that has the most."""
        var most = 0
        for shares in self.shares:
            most = max(most, shares)
        return most

    @inline(.always)
    def run[
        Work: def(Int) -> None,
        Fetch: def(Int, Int) -> None,
        //,
    ](self, phase: Int, thread: Int, work: Work, fetch: Fetch):
        """Does shares of a phase until none is left to take. Every thread calls it, for
        each phase in order.

        Args:
            phase: Which.
            thread: Which of the threads calls it.
            work: Does a share.
            fetch: Fetches a little of what a share will read, for a thread that waits:
                it takes the share and how many times it was called.
        """
        var taken = self._counter(2 * phase)
        var done = self._counter(2 * phase + 1)
        # It takes none before it may begin: another process may get its CPU.
        var spins = 0
        while not self._is_done(phase - 1):
            if thread < self.shares[phase]:
                fetch(thread, spins)
            _pause()
            spins += 1
            if spins % PATIENCE == 0:
                _ = external_call["sched_yield", Int32]()
        while True:
            var share = Int(taken[].fetch_add(1))
            if share >= self.shares[phase]:
                return
            work(share)
            _ = done[].fetch_add(1)

    @inline(.always)
    def run[
        Work: def(Int) -> None, //
    ](self, phase: Int, thread: Int, work: Work):
        """The same of a phase that reads nothing ahead."""

        @inline(.always)
        def fetch_nothing(share: Int, spins: Int) {imm}:
            pass

        self.run(phase, thread, work, fetch_nothing)

    @inline(.always)
    def _is_done(self, phase: Int) -> Bool:
        if phase < 0:
            return True
        return Int(self._counter(2 * phase + 1)[].load()) == self.shares[phase]


@inline(.always)
def _pause():
    """Tells the CPU that this thread waits."""
    comptime if CompilationTarget.is_x86():
        llvm_intrinsic["llvm.x86.sse2.pause", NoneType]()
    else:
        llvm_intrinsic["llvm.aarch64.hint", NoneType](Int32(1))
