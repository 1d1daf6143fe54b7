"""A look at a job: has it moved, has it ended, and how."""

from typing import Final

from embatch.errors import NotFoundError
from embatch.providers.base import RemoteStatus
from embatch.runs.outcomes import After, Now, Outcome, Stuck
from embatch.runs.pace import poll_interval
from embatch.runs.step import Step
from embatch.runs.submitting import REFUSED
from embatch.types.state import BatchEvent, JobState

_ENDINGS: Final[dict[str, BatchEvent]] = {
    JobState.FAILED: BatchEvent.JOB_FAILED,
    JobState.EXPIRED: BatchEvent.JOB_EXPIRED,
    JobState.CANCELLED: BatchEvent.JOB_CANCELLED,
}


def poll(step: Step) -> Outcome:
    """One look. Moves the batch when the job has ended, else notes the counts."""
    context, batch = step.context, step.batch
    try:
        status = context.provider.poll(str(batch.remote_name))
    except NotFoundError:
        if context.provider.limits.billed:
            return Stuck(
                error=f"batch {batch.number}: the provider no longer knows {batch.remote_name}"
            )
        step.move(BatchEvent.INPUT_LOST, remote_name=None, input_ref=None, succeeded=0, failed=0)
        return Now()
    if status.has_results and status.done:
        step.move(BatchEvent.RESULTS_READY, **_counts(status))
        context.checkpoint("results.ready")
        return Now()
    if status.done:
        event = _ENDINGS.get(status.state, BatchEvent.JOB_FAILED)
        step.move(
            event,
            error_code=REFUSED if status.refused else event.value,
            error=status.error or f"the job ended as {status.state}",
        )
        return Now()
    moved = (status.progress.succeeded, status.progress.failed) != (batch.succeeded, batch.failed)
    polls = 0 if moved else batch.polls + 1
    foreseen = status.poll_after_s if context.config.poll_interval_s is None else None
    if moved or foreseen is None:
        since = {"moved_at": context.now()} if moved else {}
        step.note(polls=polls, **_counts(status), **since)
    return After(seconds=foreseen or poll_interval(batch, context, polls=polls))


def _counts(status: RemoteStatus) -> dict[str, int]:
    return {"succeeded": status.progress.succeeded, "failed": status.progress.failed}
