"""What a day has in store for one batch: decided once, when it is made, and kept with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from embatch.server.details import BatchDetails
from embatch.server.weather import Plan
from embatch.service.batch import StoredBatch
from embatch.testing.cloud.faults import Facts
from embatch.testing.cloud.outcomes import Outcome
from embatch.types.state import JobState

STARTS_AT: Final = 0.2
"""Share of a lasting batch's time after which it is RUNNING."""
STATES: Final = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.PROCESSING,
    "SUCCEEDED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "EXPIRED": JobState.EXPIRED,
}
"""States by the fake cloud's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One batch's plan."""

    number: int
    """Of the day's batches, from 1: what chance is drawn with, as ids are drawn anew each day."""
    seed: int
    tokens: int = 0
    """Counted where a ceiling stands on them."""
    lasts_s: float = 0.0
    """It ends no sooner after its creation."""
    hidden_s: float = 0.0
    """It is listed no sooner after its creation."""
    stuck: str | None = None
    """Id of the fault that keeps it from ending, while that stands."""
    stuck_state: str = "RUNNING"
    outcome: Facts | None = None
    """An `Outcome` in place of its own end."""
    faults: Sequence[Facts] = ()
    """What befalls its results."""
    succeeded: int | None = None
    """Rows of its output that have a vector; None until it is written."""
    failed: int | None = None

    @classmethod
    def of(cls, plan: Plan | None) -> "BatchPlan | None":
        """The plan that was kept; None for a batch of a fair day."""
        return None if plan is None else cls(**plan)

    @classmethod
    def of_batch(cls, batch: StoredBatch) -> "BatchPlan | None":
        """The plan of a stored batch."""
        return cls.of(BatchDetails.parse(batch.details).plan)

    def build(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @property
    def end(self) -> Outcome | None:
        """The end that it meets, None for its own."""
        return None if self.outcome is None else Outcome(**self.outcome)

    def served(self, items: int) -> int:
        """How many of a batch's rows are answered, in input order."""
        return items if self.end is None else int(items * self.end.share)
