"""How much a regular expression repeats, before a compiler writes it out."""

from __future__ import annotations

import re

_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
# What may follow the parenthesis of a group: that it is not captured, or its name.
_KIND = re.compile(r"\?(:|P?<\w+>)")
_LONG = 9  # digits that no count has
MOST = 10**9


def repeated(pattern: str) -> int:
    """Returns how many characters a pattern's counts write out, ``MOST`` at most.

    ``[a-z]{5}x{2}`` has 7, ``(ab{3}){10}`` 40, ``abc`` none: of groups within groups
    the counts multiply.
    """
    # Of each group that is open, and of what stands before a count: characters that
    # are written once, and those of counts.
    groups, last = [(0, 0)], (0, 0)
    at, classes = 0, True
    while at < len(pattern):
        character, end = pattern[at], at + 1
        once, counted = groups[-1]
        found = _COUNT.match(pattern, at) if character == "{" else None
        if found:
            # A count of none, or with no end, writes its part once all the same.
            count = max(1, _number(found[1]), _number(found[2] or ""))
            counted += sum(last) * count - last[1]
            groups[-1] = (once - last[0], min(counted, MOST))
            last, end = (0, 0), found.end()
        elif character == "(":
            groups.append((0, 0))
            last = (0, 0)
            kind = _KIND.match(pattern, end)
            end = kind.end() if kind else end
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = (groups[-1][0] + last[0], min(groups[-1][1] + last[1], MOST))
        elif character not in "|^$+*?":
            if character == "\\":
                end += 1
            elif character == "[" and classes:
                end = _class_end(pattern, at)
                # Without an end it is no class, and nor is any after it.
                classes = end > at
                end = max(end, at + 1)
            last = (1, 0)
            groups[-1] = (once + 1, counted)
        at = end
    return min(sum(counted for _, counted in groups), MOST)


def _class_end(pattern: str, at: int) -> int:
    """Where the class of characters that begins at ``at`` ends; 0 if nowhere."""
    at += 2 if pattern.startswith("[^", at) else 1
    # The first may be the bracket itself.
    at += pattern.startswith("]", at)
    while at < len(pattern):
        if pattern[at] == "]":
            return at + 1
        at += 2 if pattern[at] == "\\" else 1
    return 0


def _number(digits: str) -> int:
    return int(digits or 0) if len(digits) < _LONG else MOST
