"""A batch that ended without results: its rows go on in child batches, or become failures."""

from embatch.journal.records import Failure, NewBatch
from embatch.runs.collect import MAX_ATTEMPTS, child_batch, clear_away, keep_failures
from embatch.runs.outcomes import Done, Outcome, Stuck
from embatch.runs.step import Step
from embatch.runs.submitting import REFUSED
from embatch.types.embedding import RowError
from embatch.types.state import BatchEvent


def give_way(step: Step) -> Outcome:
    """A batch without results goes on in children, or its rows become failures."""
    batch, context = step.batch, step.context
    children: list[NewBatch] = []
    failures: list[Failure] = []
    if batch.error_code == REFUSED and batch.items > 1:
        middle = batch.items // 2
        children = [
            child_batch(step, range(middle), attempt=0),
            child_batch(step, range(middle, batch.items), attempt=0),
        ]
    elif batch.error_code != REFUSED and batch.attempt < MAX_ATTEMPTS:
        children = [child_batch(step, range(batch.items), attempt=batch.attempt)]
    elif batch.items > 1:
        return Stuck(
            error=f"batch {batch.number} failed {batch.attempt} times: {batch.error}; "
            f"mend the cause, then type: embatch resume {batch.run_id}"
        )
    else:
        reason = RowError(code=batch.error_code or "batch_failed", message=str(batch.error))
        failures = keep_failures(step, {0: reason})
    step.move(BatchEvent.GAVE_WAY, children=children, failures=failures, finished_at=context.now())
    clear_away(step)
    return Done()


def quarantined(step: Step) -> Outcome:
    """A person decides."""
    return Stuck(error=f"batch {step.batch.number} is quarantined: {step.batch.error}")
