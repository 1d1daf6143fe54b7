"""Threads for each kind of work, so that none has to wait for another kind."""

from dataclasses import dataclass, field
from typing import Final

from anyio import CapacityLimiter

POLL_THREADS: Final = 8
"""Polls and lists at a time: reads of a few milliseconds."""
CHANGE_THREADS: Final = 8
"""Ends of uploads, cancels, deletes and changes at a time: they wait for the disk."""
INTAKE_THREADS: Final = 2
"""Large creates at a time: they parse and check for seconds."""
SMALL_THREADS: Final = 4
"""Small creates at a time."""
SMALL_BYTES: Final = 1 << 20
"""Body and file of a small create at most."""
EMBED_THREADS: Final = 4
"""Interactive calls in the engine at a time."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """The limits of one server; bytes on their way take the threads that belong to nobody."""

    polls: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(POLL_THREADS))
    changes: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(CHANGE_THREADS))
    intake: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(INTAKE_THREADS))
    small: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(SMALL_THREADS))
    embedding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(EMBED_THREADS))

    def intake_of(self, size_bytes: int) -> CapacityLimiter:
        """Where a body or file of this size is read."""
        return self.small if size_bytes <= SMALL_BYTES else self.intake
