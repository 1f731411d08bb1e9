"""Prints, for some numbers of last tokens, which tokens are wanted and which a plan has:
each with its place in its request."""

from kernels.plan import Plan
from kernels.wanted import Wanted


def main():
    # Three requests, one of them without tokens in this step.
    var offsets: List[UInt32] = [0, 3, 3, 44]
    var cached: List[UInt32] = [5, 7, 100]
    for last_tokens in [0, 1, 2, 20, Int.MAX]:
        var wanted = Wanted(offsets.unsafe_ptr(), 3, last_tokens)
        for i in range(len(wanted)):
            print(last_tokens, "wanted", wanted[i], 0)
        for window in [16, Int(2**31)]:
            var plan = Plan(
                offsets.unsafe_ptr(),
                cached.unsafe_ptr(),
                3,
                window,
                1,
                2,
                last_tokens,
            )
            for task in plan.tasks:
                for i in range(task.tokens):
                    print(last_tokens, window, task.token + i, task.position + i)
