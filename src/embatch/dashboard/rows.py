"""Runs as the list shows them: a whole page of them in a few queries."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

from embatch.dashboard.facts import RunRow, Tone
from embatch.dashboard.views import RunsPage
from embatch.errors import NotFoundError
from embatch.journal.overview import RunSums
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.runs.accounts import cost_and_saving
from embatch.runs.attendance import attendance_of
from embatch.runs.status import RATE_BATCHES, RunStatus, waiting_for_person
from embatch.runs.why import Why, explain
from embatch.types.state import FINAL_RUN_STATES, RunState

PER_PAGE: Final = 25
SPARK_STEPS: Final = 24
LONGEST_TITLE: Final = 200
"""Characters: journals may hold longer names than are taken today."""
_COMPLETE: Final = (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES)
_TONES: Final[dict[RunState, Tone]] = {
    RunState.PLANNING: "work",
    RunState.RUNNING: "work",
    RunState.PARKED: "wait",
    RunState.NEEDS_PERSON: "person",
    RunState.OVER_BUDGET: "person",
    RunState.CANCELLED: "ended",
    RunState.COMPLETED: "good",
    RunState.COMPLETED_WITH_FAILURES: "good",
    RunState.FAILED: "bad",
}


def read_runs(
    journal: Journal,
    *,
    state: str | None,
    tag: str | None,
    search: str | None,
    page: int,
    now: float,
) -> RunsPage:
    """A page of the runs that the filter lets through, the newest first."""
    name, equals, value = (tag or "").partition("=")
    found = journal.views.find_runs(
        state=state,
        tag=(name, value) if equals else None,
        search=search,
        offset=(page - 1) * PER_PAGE,
        limit=PER_PAGE,
    )
    ids = [run.id for run in found.runs]
    sums = journal.views.sums(ids)
    sparks = journal.views.sparks(ids, steps=SPARK_STEPS, now=now)
    rows = tuple(
        _row(journal, run, sums[run.id], sparks.get(run.id, ()), now) for run in found.runs
    )
    tags = sorted({f"{key}={word}" for row in rows for key, word in row.tags.items()})
    return RunsPage(
        now=now,
        rows=rows,
        matching=found.matching,
        total=found.total,
        states=found.states,
        tags=tuple(tags),
        state=state,
        tag=tag,
        search=search,
        page=page,
        pages=max(1, -(-found.matching // PER_PAGE)),
        per_page=PER_PAGE,
    )


def need_run(journal: Journal, run_id: str) -> RunRecord:
    """The run with exactly this id; NotFoundError where the journal has none."""
    found = journal.find_run(run_id)
    if found is None:
        raise NotFoundError(f"no run {run_id} in this journal")
    return found


def row_of_status(status: RunStatus, spark: Sequence[int]) -> RunRow:
    """The row of a run whose whole status is at hand."""
    return RunRow(
        id=status.id,
        name=status.name,
        title=title_of(status.name, status.out),
        out=status.out,
        provider=status.provider,
        model=bare_model(status.model),
        state=status.state.value,
        words=status.words,
        tone=_tone(status.state, status.worked, status.failed, status.why),
        progress=_progress(status.state, status.done, status.failed, status.rows),
        rows=status.rows,
        done=status.done,
        written=status.written,
        failed=status.failed,
        rows_per_s=status.rows_per_s,
        eta_s=status.eta_s,
        success_pct=status.success_pct,
        alert_below_pct=status.alert_below_pct,
        cost_usd=status.cost_usd,
        saved_usd=status.saved_usd,
        spark=tuple(spark),
        why=status.why,
        unseen=status.unseen,
        tags=status.tags,
        created_at=status.created_at,
        finished_at=status.finished_at,
    )


def title_of(name: str | None, out: str) -> str:
    """What a run is called: its name, else the last part of its output."""
    title = name or PurePath(out).name or out
    return title if len(title) <= LONGEST_TITLE else f"{title[:LONGEST_TITLE]}…"


def bare_model(model: str) -> str:
    """A model's name; of a folder its last part."""
    return PurePath(model).name if PurePath(model).is_absolute() else model


def _row(
    journal: Journal, run: RunRecord, sums: RunSums, spark: Sequence[int], now: float
) -> RunRow:
    counts = sums.counts
    done = counts.written + counts.live
    seen = attendance_of(journal, run, now=now)
    worked = seen.worked
    if run.finished_at is not None:
        pace: float | None = counts.written / max(0.001, run.finished_at - run.created_at)
    else:
        pace = journal.batches.pace(run.id, batches=RATE_BATCHES, now=now)
    left = None if run.rows is None else run.rows - done - counts.failed
    moving = worked and run.state is RunState.RUNNING
    why = None
    if run.state not in FINAL_RUN_STATES:
        blocked = waiting_for_person(journal, run.id, run.state)
        why = explain(journal, run, worked=worked, blocked=blocked, now=now)
    decided = counts.written + counts.failed
    cost, saved = cost_and_saving(run, sums.ledger, counts)
    return RunRow(
        id=run.id,
        name=run.name,
        title=title_of(run.name, run.out),
        out=run.out,
        provider=run.space["provider"],
        model=bare_model(run.space["model"]),
        state=run.state.value,
        words=run.state.replace("_", " ") if worked else "unattended",
        tone=_tone(run.state, worked, counts.failed, why),
        progress=_progress(run.state, done, counts.failed, run.rows),
        rows=run.rows,
        done=done,
        written=counts.written,
        failed=counts.failed,
        rows_per_s=pace,
        eta_s=left / pace if moving and pace and left is not None else None,
        success_pct=100.0 * counts.written / decided if decided else 100.0,
        alert_below_pct=run.config["alert_below_pct"],
        cost_usd=cost,
        saved_usd=saved,
        spark=tuple(spark),
        why=why,
        unseen=seen.unseen,
        tags=run.tags,
        created_at=run.created_at,
        finished_at=run.finished_at,
    )


def _tone(state: RunState, worked: bool, failed: int, why: Why | None) -> Tone:
    if not worked:
        return "person"
    if why is not None and why.kind == "person":
        return "person"
    if state is RunState.RUNNING and why is not None:
        return "wait"
    if state is RunState.COMPLETED_WITH_FAILURES and failed:
        return "bad"
    return _TONES[state]


def _progress(state: RunState, done: int, failed: int, rows: int | None) -> float:
    if not rows:
        return 1.0 if state in _COMPLETE else 0.0
    return min((done + failed) / rows, 1.0 if state in _COMPLETE else 0.99)
