"""What a step says when it returns: come back now, later, never, or call a person."""

from dataclasses import dataclass
from typing import Literal

BlockedReason = Literal["quota", "budget", "person", "owners", "unavailable"]


@dataclass(frozen=True, slots=True)
class Now:
    """The next step can be taken at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Nothing to do for a while."""

    seconds: float
    reason: BlockedReason | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """No step is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """No step can be taken until someone acts. `error` says what happened and what to type."""

    error: str
    hopeless: bool = False
    """Nothing else of the run can succeed either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """The cap bears nothing more, and nothing is under way whose end could free money."""

    error: str


Outcome = Now | After | Done | Stuck | OverBudget
