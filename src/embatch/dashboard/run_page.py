"""Reads the page of one run from the journal."""

from collections.abc import Sequence
from typing import Any, Final

from embatch.dashboard import actions
from embatch.dashboard.estimates import eta_of
from embatch.dashboard.events import PER_PAGE, timeline
from embatch.dashboard.facts import (
    GRID_LETTERS,
    OVERDUE_S,
    Blocked,
    FailedRow,
    FailureGroup,
    Grid,
    Layer,
    NextStep,
    Series,
    Spend,
)
from embatch.dashboard.rows import SPARK_STEPS, need_run, row_of_status
from embatch.dashboard.views import RunPage
from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.store import Journal
from embatch.journal.views import FailuresOfCode
from embatch.runs.accounts import enough, summary
from embatch.runs.cost import FREE
from embatch.runs.status import RunStatus, read_status
from embatch.runs.why import span
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

MOST_CELLS: Final = 10_000
"""Letters of the grid; of more batches several share one."""
SERIES_STEPS: Final = 120
NEXT_STEPS: Final = 8
EXAMPLES: Final = 5
BURN_STEPS: Final = 10
"""The burn of late is that of so many last steps of the series."""
_URGENT: Final = (
    BatchState.QUARANTINED,
    BatchState.FAILED,
    BatchState.EXPIRED,
    BatchState.CANCELLED,
    BatchState.SUBMITTING,
    BatchState.UPLOADING,
    BatchState.UPLOADED,
    BatchState.SUBMITTED,
    BatchState.READY,
    BatchState.COLLECTED,
    BatchState.PLANNED,
    BatchState.PUBLISHED,
    BatchState.SPLIT,
)
"""Of several batches in one cell the first of these is shown."""
_DOING: Final[dict[BatchState, str]] = {
    BatchState.PLANNED: "its turn",
    BatchState.UPLOADING: "upload",
    BatchState.UPLOADED: "next try to create its job",
    BatchState.SUBMITTING: "next look for its job",
    BatchState.SUBMITTED: "next poll",
    BatchState.READY: "reading its results",
    BatchState.COLLECTED: "publishing its part",
    BatchState.FAILED: "next try",
    BatchState.EXPIRED: "next try",
    BatchState.CANCELLED: "next try",
    BatchState.QUARANTINED: "next try",
}


def read_run(journal: Journal, run_id: str, *, before: int | None, now: float) -> RunPage:
    """The page of a run; NotFoundError when the journal does not have it."""
    record = need_run(journal, run_id)
    status = read_status(journal, record.id, now=now)
    views = journal.views
    spark = views.sparks([record.id], steps=SPARK_STEPS, now=now).get(record.id, ())
    row = row_of_status(status, spark)
    ended = views.published_last(record.id)
    left = None if status.rows is None else max(0, status.rows - status.done - status.failed)
    eta = None
    if status.eta_s is not None and status.rows_per_s and left is not None:
        eta = eta_of(left, status.rows_per_s, ended, now=now)
    blocked = _blocked(journal, record, status)
    return RunPage(
        now=now,
        run=row,
        dims=status.dims,
        precision=status.precision,
        priority=status.priority,
        execution=str(record.config.get("execution", "threads")),
        attended=status.worked,
        copies=status.copies,
        reused=status.reused,
        truncated=status.truncated,
        tokens=status.tokens,
        twins=status.twins,
        batches=status.batches,
        eta=eta,
        series=_series(journal, record, now) if status.batches else None,
        grid=grid_of(views.states(record.id)),
        quota=status.quota,
        spend=_spend(journal, record, status, now),
        timeline=timeline(
            views.history(record.id, before=before, limit=PER_PAGE + 1), before=before
        ),
        failures=groups_of(views.failures_by_code(record.id, examples=EXAMPLES)),
        next=_next(journal, record, now),
        blocked=blocked,
        error=status.error,
        actions=actions.offers_of_run(record, status),
    )


def grid_of(batches: Sequence[tuple[int, str, bool]]) -> Grid:
    """The grid of batches given by number: number, state, and whether each is blocked."""
    counts: dict[str, int] = dict.fromkeys((state.value for state in BatchState), 0)
    for _, state, _ in batches:
        counts[state] += 1
    blocked = sum(held for _, _, held in batches)
    first = batches[0][0] if batches else 0
    numbers = batches[-1][0] - first + 1 if batches else 0
    per_cell = max(1, -(-numbers // MOST_CELLS))
    rank = {state.value: place for place, state in enumerate(_URGENT)}
    cells = ["."] * (-(-numbers // per_cell))
    best = [len(rank) + 1] * len(cells)
    for number, state, held in batches:
        cell = (number - first) // per_cell
        place = -1 if held else rank[state]
        if place < best[cell]:
            best[cell] = place
            letter = GRID_LETTERS[state]
            cells[cell] = letter.upper() if held else letter
    letters = "".join(cells)
    seen = set(letters.lower())
    return Grid(
        total=len(batches),
        first=first,
        per_cell=per_cell,
        letters=letters,
        legend={letter: str(state) for state, letter in GRID_LETTERS.items() if letter in seen},
        counts={state: count for state, count in counts.items() if count},
        blocked=blocked,
    )


def groups_of(found: Sequence[FailuresOfCode]) -> tuple[FailureGroup, ...]:
    """Failures by reason, by their keys alone."""
    return tuple(
        FailureGroup(
            code=group.code,
            rows=group.rows,
            kept=group.kept,
            examples=tuple(
                FailedRow(key=one.key, row=one.row, message=one.message, attempts=one.attempts)
                for one in group.examples
            ),
        )
        for group in found
    )


def next_step(batch: BatchRecord, now: float) -> NextStep | None:
    """What happens next to a batch; None when nothing does."""
    doing = _DOING.get(batch.state)
    if doing is None or batch.blocked_reason == "person":
        return None
    in_hand = batch.lease_token is not None
    left = batch.next_at - now
    late = f"is due since {span(-left)}" if left <= -OVERDUE_S else "is due"
    when = "under way" if in_hand else f"in {span(left)}" if left >= 1.0 else late
    return NextStep(
        batch=batch.number,
        at=batch.next_at,
        doing=f"{doing} under way" if in_hand else doing,
        words=f"batch {batch.number}: {doing} {when}",
        reason=batch.blocked_reason,
        under_way=in_hand,
    )


def _blocked(journal: Journal, run: RunRecord, status: RunStatus) -> tuple[Blocked, ...]:
    if not status.blocked:
        return ()
    states = {one.number: one.state for one in journal.batches.waiting_for_person(run.id)}
    return tuple(
        Blocked(
            batch=number,
            detail=detail,
            resolvable=states.get(number) in actions.RESOLVABLE,
        )
        for number, detail in status.blocked.items()
    )


def _next(journal: Journal, run: RunRecord, now: float) -> tuple[NextStep, ...]:
    if run.state in FINAL_RUN_STATES:
        return ()
    batches = journal.views.next_steps(run.id, limit=NEXT_STEPS)
    steps = [next_step(batch, now) for batch in batches]
    return tuple(step for step in steps if step is not None)


def _span(run: RunRecord, now: float) -> tuple[float, float]:
    """Where the series of a run begins, and how long each of its steps is."""
    ended = run.finished_at or now
    return run.created_at, max(1.0, ended - run.created_at) / SERIES_STEPS


def _series(journal: Journal, run: RunRecord, now: float) -> Series:
    start, step_s = _span(run, now)
    moves = journal.views.moves(run.id, start=start, step_s=step_s)
    changes: dict[str, list[int]] = {state.value: [0] * (SERIES_STEPS + 1) for state in BatchState}
    for at, rows in moves.entered.items():
        changes[BatchState.PLANNED.value][_place(at)] += rows
    for at, source, target, left, came in moves.moved:
        changes[source][_place(at)] -= left
        changes[target][_place(at)] += came
    layers = []
    for state, deltas in changes.items():
        if state == BatchState.SPLIT.value:
            continue  # its rows stand in its children
        held, rows_then = 0, []
        for delta in deltas:
            held += delta
            rows_then.append(max(0, held))
        if any(rows_then):
            layers.append(Layer(state=state, rows=tuple(rows_then)))
    return Series(start=start, step_s=step_s, layers=tuple(layers))


def _place(step: int) -> int:
    """A moment of the series: what happens within a step shows at its end."""
    return min(SERIES_STEPS, max(0, step + 1))


def _spend(journal: Journal, run: RunRecord, status: RunStatus, now: float) -> Spend:
    cost = status.cost
    start, step_s = _span(run, now)
    points: list[float] = []
    facts: dict[str, Any] = dict.fromkeys(
        ("saved_batch_usd", "saved_dedupe_usd", "saved_reuse_usd", "burn_usd_per_h")
    )
    if cost is not None and cost.spent_usd is not None:
        by_step = journal.views.spent(run.id, start=start, step_s=step_s)
        points = [0.0] * (SERIES_STEPS + 1)
        for at, usd in by_step.items():
            points[_place(at)] += usd
        for place in range(1, len(points)):
            points[place] += points[place - 1]
        late = points[-1] - points[-1 - BURN_STEPS]
        if run.state not in FINAL_RUN_STATES:
            facts["burn_usd_per_h"] = late * 3600.0 / (BURN_STEPS * step_s)
        if cost.saved is not None:
            facts["saved_batch_usd"] = cost.saved.batch_price
            facts["saved_dedupe_usd"] = cost.saved.dedupe
            facts["saved_reuse_usd"] = cost.saved.reuse
    free = cost is not None and cost.price == FREE
    proposed = None
    if run.state is RunState.OVER_BUDGET:
        proposed = float(enough(journal, run))
    return Spend(
        free=free,
        cap_usd=None if cost is None else cost.cap_usd,
        spent_usd=None if cost is None else cost.spent_usd,
        open_usd=None if cost is None else cost.open_usd,
        kept_usd=None if cost is None else cost.kept_usd,
        estimated_usd=None if cost is None else cost.estimated_usd,
        saved_usd=status.saved_usd,
        proposed_cap_usd=proposed,
        start=start,
        step_s=step_s,
        points=tuple(points),
        lines=() if cost is None or free else tuple(summary(cost)),
        **facts,
    )
