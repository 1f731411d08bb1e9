"""Regular expressions of JSON schemas, before a compiler writes them out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
# What may follow the parenthesis of a group: that it is not captured, or its name.
_KIND = re.compile(r"\?(:|P?<\w+>)")
_LONG = 9  # digits that no count has
MOST = 10**9
# Any text. The compiler can tell how long a class with a range may be, but not one of
# "." or "\\s\\S", and so holds a minLength beside it.
ANY = r"[\u0000-\u{10ffff}]*"
_MOST_LEVELS = 32  # of groups with anchors in them
_MOST_SEARCHES = 64  # places for any text; each is as long as twenty characters
# What follows the backslash of one character, by its number.
_NUMBERED = re.compile(r"u\{[0-9A-Fa-f]+\}")


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
                end = _escape_end(pattern, at)
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
    while at < len(pattern):
        if pattern[at] == "]":
            return at + 1
        at += 2 if pattern[at] == "\\" else 1
    return 0


def _escape_end(pattern: str, at: int) -> int:
    """Where the character ends whose backslash is at ``at``."""
    number = _NUMBERED.match(pattern, at + 1)
    return number.end() if number else at + 2


def _number(digits: str) -> int:
    return int(digits or 0) if len(digits) < _LONG else MOST


def searched(pattern: str) -> str:
    """Returns a pattern of whole texts in which the given one is found somewhere.

    JSON Schema searches, and a grammar fits from end to end. A pattern that is no good
    stays as it is, for the grammar's compiler to refuse.

    Raises:
        ValueError: A ``^`` or ``$`` stands elsewhere than at an end, or there are more
            than 64 places for any text.
    """
    whole = _read(pattern)
    return pattern if whole is None else _Searched(pattern).group(whole, ANY, ANY)


@dataclass
class _Group:
    """A group, or the whole pattern: where its inside lies, and what is in it."""

    opened: int
    start: int
    end: int = 0
    branches: list[list[_Part]] = field(default_factory=lambda: [[]])
    anchors: bool = False


@dataclass
class _Part:
    """A character, a class, an anchor or a group, with what repeats it."""

    start: int
    end: int
    anchors: bool = False
    group: _Group | None = None
    repeats: bool = False


def _read(pattern: str) -> _Group | None:
    """Returns a pattern's groups; ``None`` if it is none that could be compiled."""
    groups = [_Group(0, 0)]
    at = 0
    while at < len(pattern):
        character, end = pattern[at], at + 1
        parts = groups[-1].branches[-1]
        if character == "|":
            groups[-1].branches.append([])
        elif character == "(":
            kind = _KIND.match(pattern, end)
            end = kind.end() if kind else end
            groups.append(_Group(at, end))
        elif character == ")":
            if len(groups) == 1:
                return None
            group = groups.pop()
            group.end = at
            groups[-1].anchors |= group.anchors
            part = _Part(group.opened, end, group.anchors, group)
            groups[-1].branches[-1].append(part)
        elif character in "*+?{":
            if not parts:
                return None
            found = _COUNT.match(pattern, at)
            parts[-1].end = end = found.end() if found else end
            parts[-1].repeats = True
        else:
            if character == "\\":
                end = _escape_end(pattern, at)
            elif character == "[":
                end = _class_end(pattern, at)
            if not end or end > len(pattern):
                return None
            anchors = character in "^$"
            groups[-1].anchors |= anchors
            parts.append(_Part(at, end, anchors))
        at = end
    groups[0].end = len(pattern)
    return groups[0] if len(groups) == 1 else None


class _Searched:
    """Writes a pattern anew, with any text where it has no anchor.

    What stands before and after a part is :data:`ANY`, "" where an anchor around the
    part says that there is nothing, or ``None`` where no anchor may be.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._levels = self._searches = 0

    def group(self, group: _Group, before: str | None, after: str | None) -> str:
        """Returns a group's inside."""
        if not group.anchors:
            inside = self._pattern[group.start : group.end]
            several = len(group.branches) > 1 and (before or after)
            return self._within(before, f"(?:{inside})" if several else inside, after)
        self._levels += 1
        if self._levels > _MOST_LEVELS:
            raise ValueError("anchors in too many groups within groups")
        found = [self._branch(parts, before, after) for parts in group.branches]
        self._levels -= 1
        return "|".join(found)

    def _branch(self, parts: list[_Part], before: str | None, after: str | None) -> str:
        first, last = 0, len(parts)
        while before is not None and first < last and self._is(parts[first], "^"):
            before, first = "", first + 1
        while after is not None and first < last and self._is(parts[last - 1], "$"):
            after, last = "", last - 1
        if first == last:
            return self._within(before, "", after)
        found = []
        for index, part in enumerate(parts[first:last], first):
            ahead = before if index == first else None
            behind = after if index == last - 1 else None
            text = self._pattern[part.start : part.end]
            if not part.anchors:
                found.append(self._within(ahead, text, behind))
            elif part.group is None or part.repeats:
                raise ValueError("an anchor that is not at an end")
            else:
                opening = self._pattern[part.start : part.group.start]
                inside = self.group(part.group, ahead, behind)
                found.append(f"{opening}{inside})")
        return "".join(found)

    def _within(self, before: str | None, inside: str, after: str | None) -> str:
        """Returns what is inside, between what stands around it."""
        if not inside:
            before, after = before or after, None
        self._searches += bool(before) + bool(after)
        if self._searches > _MOST_SEARCHES:
            raise ValueError("any text in too many places")
        return (before or "") + inside + (after or "")

    def _is(self, part: _Part, anchor: str) -> bool:
        return self._pattern[part.start : part.end] == anchor
