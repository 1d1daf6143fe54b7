"""How a run stands: one snapshot that the panel, `status --json` and Python share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embatch.journal.records import RunCounts
from embatch.journal.store import Journal
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

RATE_BATCHES = 20
"""Published batches whose pace counts as the present one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run at one moment. Counts are rows, times seconds since 1970."""

    id: str
    name: str | None
    state: RunState
    out: str
    provider: str
    model: str
    dims: int
    precision: str | None
    tags: Mapping[str, str]
    priority: int
    """Higher is worked on first."""
    rows: int | None
    """Rows of the dataset; None while it is read through for the first time."""
    done: int
    """Rows that have a vector, those of batches under way included."""
    written: int
    """Rows that stand in published parts."""
    failed: int
    copies: int
    reused: int
    truncated: int
    tokens: int
    batches: Mapping[str, int]
    """Batches by state."""
    rows_per_s: float | None
    eta_s: float | None
    cost_usd: float | None
    """So far; None where embedding is billed and nobody has counted it."""
    saved_usd: float | None
    created_at: float
    finished_at: float | None
    alert_below_pct: float
    error_code: str | None
    """Name of the class in embatch.errors that tells what stopped the run."""
    error: str | None
    waiting: str | None
    """Why nothing moves, in one sentence."""

    @property
    def finished(self) -> bool:
        """The run has ended, well or not."""
        return self.state in FINAL_RUN_STATES

    @property
    def success_pct(self) -> float:
        """Rows with a vector, of those that are decided, in percent; 100.0 before the first."""
        decided = self.written + self.failed
        return 100.0 if not decided else 100.0 * self.written / decided

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**asdict(self), "tags": dict(self.tags), "success_pct": self.success_pct}


def read_status(journal: Journal, run_id: str, *, now: float) -> RunStatus:
    """The run as it stands in the journal at `now`."""
    run = journal.get_run(run_id)
    counts = journal.batches.counts(run.id)
    done = counts.written + counts.live
    if run.finished_at is None:
        rate = journal.batches.pace(run.id, batches=RATE_BATCHES, now=now)
    else:
        rate = counts.written / max(0.001, run.finished_at - run.created_at)
    left = None if run.rows is None else run.rows - done - counts.failed
    unbilled = 0.0 if run.space["provider"] == "local" else None
    moving = run.state is RunState.RUNNING and rate and left is not None
    return RunStatus(
        id=run.id,
        name=run.name,
        state=run.state,
        out=run.out,
        provider=run.space["provider"],
        model=run.space["model"],
        dims=run.space["dims"],
        precision=run.space.get("precision"),
        tags=run.tags,
        priority=run.priority,
        rows=run.rows,
        done=done,
        written=counts.written,
        failed=counts.failed,
        copies=counts.copies,
        reused=counts.reused,
        truncated=counts.truncated,
        tokens=counts.tokens,
        batches={state.value: count for state, count in counts.batches.items()},
        rows_per_s=rate,
        eta_s=left / rate if moving and rate and left is not None else None,
        cost_usd=unbilled,
        saved_usd=unbilled,
        created_at=run.created_at,
        finished_at=run.finished_at,
        alert_below_pct=run.config["alert_below_pct"],
        error_code=run.error_code,
        error=run.error,
        waiting=_waiting(journal, run.id, run.state, counts, now),
    )


def _waiting(
    journal: Journal, run_id: str, state: RunState, counts: RunCounts, now: float
) -> str | None:
    if state in FINAL_RUN_STATES:
        return None
    blocked = journal.batches.first_blocked(run_id)
    if blocked is not None and blocked.next_at > now:
        return (
            f"batch {blocked.number} waits {blocked.next_at - now:.0f} s more "
            f"({blocked.blocked_reason}): {blocked.blocked_detail or 'no detail given'}"
        )
    unfinished = sum(
        count
        for name, count in counts.batches.items()
        if name not in (BatchState.PUBLISHED, BatchState.SPLIT)
    )
    if unfinished and not journal.leases.is_worked(run_id, now=now):
        return f"no process works on it: embatch resume {run_id}"
    return None
