"""How a run stands: one snapshot that the panel, `status --json` and Python share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from embatch.journal.outbox import OutboxCounts
from embatch.journal.store import Journal
from embatch.runs.accounts import Accounts, read_accounts
from embatch.runs.attendance import Attendance, attendance_of
from embatch.runs.quota_status import QuotaStatus, read_quota
from embatch.runs.why import Why, explain
from embatch.types.state import FINAL_RUN_STATES, RunState

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
    """So far; None where nobody knows the price."""
    saved_usd: float | None
    """Against the interactive price, by equal texts and by reuse; None as above."""
    created_at: float
    finished_at: float | None
    alert_below_pct: float
    error_code: str | None
    """Name of the class in embatch.errors that tells what stopped the run."""
    error: str | None
    waiting: str | None
    """Why nothing moves, in one sentence."""
    blocked: Mapping[int, str] = field(default_factory=dict)
    """Batches that wait for a person, by number: what happened, and what to type."""
    twins: int = 0
    """Jobs that turned up after they were held absent."""
    cost: Accounts | None = None
    """The run's money in full."""
    quota: QuotaStatus | None = None
    """The learned quota; None where nothing was sent."""
    notifications: OutboxCounts | None = None
    """Messages about the run that have not arrived."""
    worked: bool = True
    """Some process takes the steps of the run, or it needs none now."""
    unseen: str | None = None
    """Why its output cannot be looked at, so that the journal alone tells who works on it."""
    why: Why | None = None
    """Why nothing moves, with what to type; while the input is read, that."""

    @property
    def finished(self) -> bool:
        """The run has ended, well or not."""
        return self.state in FINAL_RUN_STATES

    @property
    def complete(self) -> bool:
        """Every row has its vector, or its failure."""
        return self.state in (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES)

    @property
    def words(self) -> str:
        """The state for people: a run that no process works on is not called running."""
        return self.state.replace("_", " ") if self.worked else "unattended"

    @property
    def success_pct(self) -> float:
        """Rows with a vector, of those that are decided, in percent; 100.0 before the first."""
        decided = self.written + self.failed
        return 100.0 if not decided else 100.0 * self.written / decided

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        blocked = {str(number): words for number, words in self.blocked.items()}
        values = {**asdict(self), "tags": dict(self.tags), "blocked": blocked}
        cost = None if self.cost is None else self.cost.to_json()
        return {**values, "cost": cost, "success_pct": self.success_pct}


def read_status(
    journal: Journal, run_id: str, *, now: float, works_here: bool = False
) -> RunStatus:
    """The run as it stands in the journal at `now`; `works_here`: this process works on it."""
    run = journal.get_run(run_id)
    seen = Attendance(worked=True) if works_here else attendance_of(journal, run, now=now)
    worked = seen.worked
    counts = journal.batches.counts(run.id)
    done = counts.written + counts.live
    if run.finished_at is None:
        rate = journal.batches.pace(run.id, batches=RATE_BATCHES, now=now)
    else:
        rate = counts.written / max(0.001, run.finished_at - run.created_at)
    left = None if run.rows is None else run.rows - done - counts.failed
    cost = read_accounts(journal, run, counts)
    moving = worked and run.state is RunState.RUNNING and rate and left is not None
    blocked = waiting_for_person(journal, run.id, run.state)
    why = explain(journal, run, worked=worked, blocked=blocked, now=now)
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
        cost_usd=cost.spent_usd,
        saved_usd=None if cost.saved is None else cost.saved.usd,
        cost=cost,
        created_at=run.created_at,
        finished_at=run.finished_at,
        alert_below_pct=run.config["alert_below_pct"],
        error_code=run.error_code,
        error=run.error,
        waiting=None if why is None or why.kind == "planning" else why.sentence,
        why=why,
        blocked=blocked,
        twins=run.twins,
        quota=read_quota(journal, run.id, now=now),
        notifications=journal.outbox.counts(run.id),
        worked=worked,
        unseen=seen.unseen,
    )


def waiting_for_person(journal: Journal, run_id: str, state: RunState) -> dict[int, str]:
    """What happened to batches that wait for a person, and what to type, by number."""
    if state in FINAL_RUN_STATES:
        return {}
    waiting = journal.batches.waiting_for_person(run_id)
    return {batch.number: str(batch.blocked_detail) for batch in waiting}
