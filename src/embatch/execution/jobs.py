"""Jobs of workers: what they are called, where they wait, and which of them come first."""

from dataclasses import dataclass
from typing import Final, Literal

from embatch.execution.steps import WORKING_STATES
from embatch.journal.records import RunRecord
from embatch.journal.workers import Queue, queue_of

Task = Literal["dispatch", "step", "plan", "finish", "watch"]
QUEUES: Final[tuple[Queue, ...]] = ("io", "compute")
_RANK: Final[dict[Task, int]] = {"step": 3, "finish": 2, "watch": 2, "dispatch": 1, "plan": 0}
_MOST_PRIORITY: Final = 10**8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that should wait in a queue, to be taken not before `at`."""

    task: Task
    run_id: str
    queue: Queue
    batch_id: int | None = None
    at: float | None = None
    """Seconds since 1970; None: at once."""
    priority: int = 0

    @property
    def lock(self) -> str:
        """Of two jobs with the same lock one alone waits: that which is due first."""
        batch = "" if self.batch_id is None else f":{self.batch_id}"
        return f"embatch:{self.task}:{self.run_id}{batch}"


def job_of(run: RunRecord, task: Task, batch_id: int | None = None, at: float | None = None) -> Job:
    """A job of a run."""
    urgency = max(-_MOST_PRIORITY, min(_MOST_PRIORITY, run.priority))
    return Job(
        task=task,
        run_id=run.id,
        queue=queue_of(run),
        batch_id=batch_id,
        at=at,
        priority=4 * urgency + _RANK[task],
    )


def is_worked(run: RunRecord) -> bool:
    """The run is for workers, and in a state in which it has steps to take."""
    return run.config.get("execution") == "workers" and run.state in WORKING_STATES
