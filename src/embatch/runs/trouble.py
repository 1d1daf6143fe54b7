"""A job that ended and cannot be read, or that nobody knows any more: waiting, then a person."""

import logging
from collections.abc import Sequence
from math import inf
from typing import Final

from embatch.errors import ProviderUnavailableError, TransitionRefusedError
from embatch.journal.conditions import PRESSING_S
from embatch.journal.gates import DIRECT
from embatch.journal.jobs import STUCK
from embatch.journal.records import BatchRecord
from embatch.journal.store import Journal
from embatch.runs.outcomes import After, Now, Outcome, Stuck
from embatch.runs.pace import backoff
from embatch.runs.step import Step
from embatch.types.state import BatchEvent, JobState, RunEvent, RunState

log = logging.getLogger("embatch.runs")

QUOTA: Final = "quota"
"""Error code of a batch that the service had no room for when its turn came."""
UNREADABLE: Final = "unreadable"
"""Error code of a batch whose results were there and could never be read."""
UNREADABLE_FOR_S: Final = 5 * 24 * 3600.0
"""How long results that are paid for are asked for, before their rows are bought again."""
_HOUR_S: Final = 3600.0
_TOO_SLOW: Final = (STUCK, BatchEvent.JOB_EXPIRED.value)


def smaller(batch: BatchRecord, indices: Sequence[int]) -> list[Sequence[int]]:
    """Which rows of a batch to send again together: halves, when its job took too long."""
    slow = (
        batch.error_code in _TOO_SLOW
        or batch.cancel_asked_at is not None
        or batch.remote_state == JobState.EXPIRED
    )
    return halves(indices) if slow else [indices]


def halves(indices: Sequence[int]) -> list[Sequence[int]]:
    """The indices in two parts, or as they are when there is but one."""
    middle = len(indices) // 2
    return [indices[:middle], indices[middle:]] if middle else [indices]


def lost(step: Step) -> Outcome:
    """The provider has no job of this name any more: its list decides, then a person.

    Where nothing is billed, the batch is sent again.
    """
    context, batch = step.context, step.batch
    if not context.provider.limits.billed:
        step.move(BatchEvent.INPUT_LOST, remote_name=None, input_ref=None, succeeded=0, failed=0)
        return Now()
    overdue = is_overdue(step)
    try:
        found = context.provider.find(str(batch.label))
    except ProviderUnavailableError as error:
        if not overdue:
            raise
        return _unseen(step, f"nor can its list be read through: {str(error).rstrip('.')}")
    if found is None:
        return Stuck(
            error=f"batch {batch.number}: the provider no longer knows {batch.remote_name}, nor "
            f"any job named {batch.label}{_elsewhere(step)}. {_choice(step, 'bought')}"
        )
    if overdue:
        return _unseen(step, f"while {found.name} stands in its list")
    step.note(polls=_failures(step) + 1, remote_name=found.name)
    return After(
        seconds=backoff(_failures(step), context),
        reason="unavailable",
        detail=f"{found.name} stands in the provider's list, and cannot be looked at now",
    )


def _unseen(step: Step, but: str) -> Stuck:
    """A job that cannot be looked at for days, and is not surely gone."""
    batch = step.batch
    return Stuck(
        error=f"batch {batch.number}: for days the provider has not known {batch.remote_name} when "
        f"it is asked for it, {but}. Its rows may be paid for. To try on, type: "
        f"embatch resume {batch.run_id}. {_choice(step, 'bought')}"
    )


def is_overdue(step: Step) -> bool:
    """The job ended, or last moved, so long ago that nothing is to be hoped for from asking again.

    So it is at once where no job was paid for.
    """
    return step.context.now() >= _since(step) + UNREADABLE_FOR_S


def _since(step: Step) -> float:
    """When the batch's job ended or, if it goes on, last moved."""
    batch, context = step.batch, step.context
    label = str(batch.label)
    if not context.provider.limits.billed or label.startswith(DIRECT):
        return -inf
    job = context.journal.jobs.find(label)
    if job is None:
        return batch.created_at
    moved_at = max(batch.moved_at or 0.0, batch.submitted_at or 0.0)
    return job.ended_at or moved_at or batch.created_at


def _choice(step: Step, then: str) -> str:
    """What a person may type about a job that may or may not be there."""
    batch = step.batch
    command = f"embatch resolve {batch.run_id} {batch.number}"
    return (
        f"If you find it, type: {command} --adopt NAME; "
        f"if there is surely none, type: {command} --absent, and its rows are {then} again"
    )


def _elsewhere(step: Step) -> str:
    """Words for a job that was made under another key or project than the present one."""
    job = step.context.journal.jobs.find(str(step.batch.label))
    if job is None or job.scope == step.context.provider.scope:
        return ""
    return (
        "; it was made under another key, project or server than the present one: with that one "
        f"set again, type: embatch resume {step.batch.run_id}"
    )


def is_elsewhere(step: Step) -> bool:
    """The job was made, or not made, where the present key and project do not lead."""
    return _elsewhere(step) != ""


def in_doubt(step: Step, why: str) -> Stuck:
    """Nobody can tell whether the batch was created: a person looks."""
    batch = step.batch
    return Stuck(
        error=f"batch {batch.number}: it cannot be told whether its job was created, "
        f"{why.rstrip('.')}"
        f"{_elsewhere(step)}. Look for a job named {batch.label}. {_choice(step, 'sent')}"
    )


def unreadable(step: Step, error: ProviderUnavailableError) -> Outcome:
    """Results that are paid for and cannot be read: again later, for days; then bought again."""
    context, batch = step.context, step.batch
    if not context.provider.limits.billed:
        raise error
    now = context.now()
    if is_overdue(step):
        days = (now - max(_since(step), batch.created_at)) / (24 * _HOUR_S)
        step.move(
            BatchEvent.JOB_FAILED,
            error_code=UNREADABLE,
            error=f"its results could not be read in {days:.0f} days: {error}",
        )
        log.warning("batch %d: its results were never readable: bought again", batch.number)
        return Now()
    step.note(polls=_failures(step) + 1)
    return After(
        seconds=max(backoff(_failures(step), context), error.retry_after_s or 0.0),
        reason="unavailable",
        detail=f"{error}{_kept_for(step, now)}",
    )


def _failures(step: Step) -> int:
    """Failures in a row: looks that found nothing new are counted there too."""
    return step.batch.polls if step.batch.blocked_reason == "unavailable" else 0


def _kept_for(step: Step, now: float) -> str:
    """A warning when the provider lets go of the results soon."""
    batch = step.batch
    if batch.results_until is None or batch.results_until - now > PRESSING_S:
        return ""
    left_h = (batch.results_until - now) / _HOUR_S
    log.warning(
        "batch %d: its results cannot be read, and the provider keeps them %.1f hours more",
        batch.number,
        max(0.0, left_h),
    )
    if left_h <= 0:
        return "; the provider may have let go of its results by now"
    return f"; the provider keeps its results {left_h:.1f} hours more"


def call_person(journal: Journal, run_id: str, *, now: float) -> bool:
    """Stops a run in which nothing moves before someone acts. Gives whether it did."""
    if not journal.leases.waits_for_person(run_id):
        return False
    try:
        journal.transition_run(run_id, RunEvent.BLOCKED, expected=RunState.RUNNING, now=now)
    except TransitionRefusedError:
        return False  # another process did, or someone has acted
    return True
