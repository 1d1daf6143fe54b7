"""What became of one attempt to deliver a message."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The end of one attempt."""

    delivered: bool
    error: str | None = None
    """What went wrong, without secrets and without what the receiver said."""
    final: bool = False
    """It is not to be tried again."""
    unreachable: bool = False
    """Nothing else would arrive there now either."""

    @classmethod
    def arrived(cls) -> "Attempt":
        """The target has it."""
        return cls(delivered=True)

    @classmethod
    def failed(cls, error: str, *, unreachable: bool = False) -> "Attempt":
        """It may be tried again."""
        return cls(delivered=False, error=error, unreachable=unreachable)

    @classmethod
    def hopeless(cls, error: str) -> "Attempt":
        """It must not be tried again."""
        return cls(delivered=False, error=error, final=True)


Send = Callable[[str, str, Mapping[str, Any]], Attempt]
"""Tries once to deliver: target, message id, payload."""
