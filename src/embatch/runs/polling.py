"""A look at a job: has it moved, has it ended, and how; what stands still is asked to stop."""

import logging
from typing import Any, Final

from embatch.errors import EmbatchError, NotFoundError, ProviderUnavailableError
from embatch.journal.jobs import STUCK
from embatch.providers.base import RemoteStatus
from embatch.runs.outcomes import After, Now, Outcome, Stuck
from embatch.runs.pace import poll_interval
from embatch.runs.step import Step
from embatch.runs.submitting import REFUSED
from embatch.runs.trouble import QUOTA, UNREADABLE_FOR_S, lost
from embatch.types.state import BatchEvent, JobState

log = logging.getLogger("embatch.runs")

_ENDINGS: Final[dict[str, BatchEvent]] = {
    JobState.FAILED: BatchEvent.JOB_FAILED,
    JobState.EXPIRED: BatchEvent.JOB_EXPIRED,
    JobState.CANCELLED: BatchEvent.JOB_CANCELLED,
}
_WORD_CHARS: Final = 64


def poll(step: Step) -> Outcome:
    """One look. Moves the batch when the job has ended, else notes how far it is."""
    context, batch = step.context, step.batch
    try:
        status = context.provider.poll(str(batch.remote_name))
    except NotFoundError:
        return lost(step)
    except ProviderUnavailableError as error:
        if context.now() - _moved_at(step) < UNREADABLE_FOR_S + context.config.stuck_after_s:
            raise
        return Stuck(
            error=f"batch {batch.number}: {batch.remote_name} could not be looked at for days: "
            f"{str(error).rstrip('.')}. Its rows may be paid for. To try on, type: "
            f"embatch resume {batch.run_id}; "
            f"to give it up, type: embatch resolve {batch.run_id} {batch.number} --absent, and "
            "its rows are bought again"
        )
    if status.done:
        return _ended(step, status)
    seen = _seen(status)
    moved = any(getattr(batch, name) != value for name, value in seen.items())
    polls = 0 if moved else batch.polls + 1
    foreseen = status.poll_after_s if context.config.poll_interval_s is None else None
    if moved or foreseen is None:
        since = {"moved_at": context.now()} if moved else {}
        step.note(polls=polls, **seen, **since)
    if not moved and context.provider.limits.billed:
        late = _stands_still(step)
        if late is not None:
            return late
    return After(seconds=foreseen or poll_interval(batch, context, polls=polls))


def _ended(step: Step, status: RemoteStatus) -> Outcome:
    context = step.context
    if status.has_results:
        kept_s = context.provider.limits.results_kept_s
        ended_at = context.now() if status.ended_at is None else status.ended_at
        until = None if kept_s is None else ended_at + kept_s
        step.move(
            BatchEvent.RESULTS_READY,
            polls=0,
            results_until=until,
            error_code=QUOTA if status.quota else None,
            **_seen(status),
        )
        context.checkpoint("results.ready")
        return Now()
    event = _ENDINGS.get(status.state, BatchEvent.JOB_FAILED)
    code = event.value
    if status.refused or status.quota:
        code = REFUSED if status.refused else QUOTA
    step.move(
        event,
        error_code=code,
        error=status.error or f"the job ended as {status.state}",
        remote_state=_word(status),
    )
    return Now()


def _stands_still(step: Step) -> Outcome | None:
    """Asks a job to stop that has not moved for long; leaves it behind when it takes no notice.

    None while there is nothing to be done but wait.
    """
    context, batch = step.context, step.batch
    patience_s, now = context.config.stuck_after_s, context.now()
    if batch.cancel_asked_at is not None:
        if now - batch.cancel_asked_at < patience_s:
            return None
        log.warning(
            "batch %d: %s goes on in spite of being cancelled: its rows are sent again, and it "
            "is watched",
            batch.number,
            batch.remote_name,
        )
        step.move(
            BatchEvent.JOB_EXPIRED,
            error_code=STUCK,
            error="the job stood still and did not stop when it was asked to",
        )
        return Now()
    if now - _moved_at(step) < patience_s:
        return None
    step.note(cancel_asked_at=now)
    context.checkpoint("cancel.intended")
    try:
        context.provider.cancel(str(batch.remote_name))
    except NotFoundError:
        return lost(step)
    except EmbatchError:
        step.note(cancel_asked_at=None)  # asked again at the next look
        raise
    context.checkpoint("cancel.asked")
    hours = (now - _moved_at(step)) / 3600.0
    log.warning("batch %d has not moved for %.1f hours: it is stopped", batch.number, hours)
    context.journal.add_event(batch.run_id, "cancel_asked", now=now, batch_id=batch.id)
    return After(seconds=poll_interval(batch, context))


def _moved_at(step: Step) -> float:
    batch = step.batch
    return max(batch.moved_at or 0.0, batch.submitted_at or 0.0)


def _seen(status: RemoteStatus) -> dict[str, Any]:
    return {
        "succeeded": status.progress.succeeded,
        "failed": status.progress.failed,
        "remote_state": _word(status),
    }


def _word(status: RemoteStatus) -> str:
    return str(status.state)[:_WORD_CHARS]
