"""A batch that ended without results: its rows go on in child batches, or become failures."""

from collections.abc import Sequence
from dataclasses import replace

from embatch.journal.jobs import STUCK
from embatch.journal.records import Failure, NewBatch
from embatch.runs.collect import MAX_ATTEMPTS, child_batch, clear_away, keep_failures
from embatch.runs.good_rows import in_need
from embatch.runs.outcomes import Done, Outcome, Stuck
from embatch.runs.pace import MAX_DELAY_S, RETRY_DELAY_S
from embatch.runs.step import Step
from embatch.runs.submitting import REFUSED
from embatch.runs.trouble import QUOTA, halves, smaller
from embatch.types.embedding import RowError
from embatch.types.state import BatchEvent


def give_way(step: Step) -> Outcome:
    """A batch without results goes on in children, or its rows become failures."""
    batch, context = step.batch, step.context
    everything = in_need(batch)
    children: list[NewBatch] = []
    failures: list[Failure] = []
    if batch.error_code == REFUSED and batch.items > 1:
        children = _children(step, halves(everything), attempt=0)
    elif batch.error_code == QUOTA:
        children = [_child_in_line(step)]
    elif batch.error_code != REFUSED and batch.attempt < MAX_ATTEMPTS:
        children = _children(step, smaller(batch, everything), attempt=batch.attempt)
    elif batch.items > 1:
        return Stuck(
            error=f"batch {batch.number} failed {batch.attempt} times: {batch.error}; "
            f"mend the cause, then type: embatch resume {batch.run_id}"
        )
    else:
        reason = RowError(code=batch.error_code or "batch_failed", message=str(batch.error))
        failures = keep_failures(step, {0: reason})
    step.move(BatchEvent.GAVE_WAY, children=children, failures=failures, finished_at=context.now())
    clear_away(step, leave_remote=batch.error_code == STUCK)
    return Done()


def _children(step: Step, pieces: Sequence[Sequence[int]], *, attempt: int) -> list[NewBatch]:
    return [child_batch(step, piece, attempt=attempt) for piece in pieces]


def _child_in_line(step: Step) -> NewBatch:
    """All rows once more, without the loss of an attempt, the later the more often it was so."""
    batch = step.batch
    child = child_batch(step, in_need(batch), attempt=max(0, batch.attempt - 1))
    times, parent_id = 1, batch.parent_id
    while parent_id is not None and times < 10:
        parent = step.context.journal.batches.get(parent_id)
        if parent.error_code != QUOTA:
            break
        times, parent_id = times + 1, parent.parent_id
    return replace(child, delay_s=min(MAX_DELAY_S, RETRY_DELAY_S * 2.0**times))
