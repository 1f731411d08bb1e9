"""The flags for ``max``, which are passed on as they are."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Flags:
    """What stands behind MODEL on the command line.

    Only the flags that decide what is picked are looked at; ``max`` reads them
    all, and knows which of them exist.
    """

    given: tuple[str, ...]

    def has(self, *names: str) -> bool:
        """Whether one of the flags ``names`` is given."""
        return bool(self._values(*names))

    def value(self, *names: str) -> str | None:
        """Returns what the flag is set to; of several, as ``max`` does, the last.

        Raises:
            UsageError: If its value is missing.
        """
        values = self._values(*names)
        if not values:
            return None
        if values[-1] is None:
            raise UsageError(f"{names[0]} has no value. Give one, or leave it out.")
        return values[-1]

    def values(self, *names: str) -> list[str]:
        """Returns every value of a flag that may be repeated."""
        self.value(*names)
        return [value for value in self._values(*names) if value is not None]

    def without(self, *names: str) -> tuple[str, ...]:
        """Returns all that is given but these flags and their values."""
        kept = []
        arguments = iter(self.given)
        for argument in arguments:
            name, equals, _ = argument.partition("=")
            if name not in names:
                kept.append(argument)
            elif not equals:
                next(arguments, None)
        return tuple(kept)

    def _values(self, *names: str) -> list[str | None]:
        found: list[str | None] = []
        following = (*self.given, None)[1:]
        for argument, after in zip(self.given, following, strict=True):
            name, equals, value = argument.partition("=")
            if name in names:
                found.append(value if equals else after)
        return found
