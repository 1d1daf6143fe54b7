"""One guarded step of one batch: read its state, do the one thing that follows, journal it.

Inside a step the order is: journal the intent, act, journal the fact. A step never sleeps, loops
or spawns; it says when to come back. Whatever is left undone by a crash is seen from the state.
"""

import math
from collections.abc import Callable

from embatch.errors import (
    AuthenticationError,
    ConfigError,
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.journal.leases import Claim
from embatch.journal.records import BatchRecord, Failure, NewBatch
from embatch.providers.base import RemoteBatch, RemoteStatus
from embatch.runs import collect, copies
from embatch.runs.collect import MAX_ATTEMPTS, RETRY_DELAY_S, child_batch, clear_away, keep_failures
from embatch.runs.context import RunContext
from embatch.runs.outcomes import After, Done, Now, Outcome, Stuck
from embatch.runs.step import Step
from embatch.types.embedding import RowError
from embatch.types.state import BatchEvent, BatchState, JobState, RunState

REFUSED = "refused"
"""Error code of a batch that the service refused because of what is in it."""
_WITHOUT_EFFECT = (
    RateLimitError,
    ProviderUnavailableError,
    AuthenticationError,
    PermissionDeniedError,
    ConfigError,
)
"""Errors of a submission that surely made no batch, and say nothing about its rows."""
MAX_DELAY_S = 600.0
"""Longest wait between two steps (spec.md section 5)."""
POLL_BACKOFF = 1.5
_POLL_BY_ITEMS = ((100, 2.0), (1_000, 5.0), (10_000, 10.0))
_POLL_LARGEST_S = 30.0


def advance(
    claim: Claim, context: RunContext, is_held: Callable[[], bool] = lambda: True
) -> Outcome:
    """Takes the one step that the batch's state asks for. The lease of `claim` must be held.

    Long steps ask `is_held` on their way and end with LeaseLostError when it is not.
    """
    step = Step(claim.batch, claim.token, context, is_held)
    try:
        return _STEPS[claim.batch.state](step)
    except RateLimitError as error:
        step.note(polls=claim.batch.polls + 1)
        wait = error.retry_after_s or backoff(claim.batch.polls, context)
        if error.per_day:  # a wait in seconds is a slip of the service
            wait = max(wait, MAX_DELAY_S)
        return After(seconds=wait, reason="quota", detail=str(error))
    except ProviderUnavailableError as error:
        step.note(polls=claim.batch.polls + 1)
        wait = max(backoff(claim.batch.polls, context), error.retry_after_s or 0.0)
        return After(seconds=wait, reason="unavailable", detail=str(error))


def _start(step: Step) -> Outcome:
    if step.batch.kind != "embed":
        return copies.wait_for_owners(step)
    attempt = step.batch.attempt + 1
    label = step.label(attempt)
    return _upload(step.move(BatchEvent.UPLOAD_STARTED, attempt=attempt, label=label, polls=0))


def _upload(step: Step) -> Outcome:
    context, batch = step.context, step.batch
    context.checkpoint("upload.intended")
    try:
        input_ref = context.provider.upload(step.stage(), str(batch.label))
    except InvalidRequestError as error:
        step.move(BatchEvent.UPLOAD_REFUSED, error_code=REFUSED, error=str(error))
        return Now()
    context.checkpoint("upload.done")
    step.move(BatchEvent.UPLOAD_FINISHED, input_ref=input_ref)
    return Now()


def _submit(step: Step) -> Outcome:
    context = step.context
    step = step.move(BatchEvent.SUBMIT_INTENDED, submitted_at=context.now(), absences=0)
    batch = step.batch
    context.checkpoint("submit.intended")
    try:
        remote = context.provider.submit(
            str(batch.input_ref),
            str(batch.label),
            items=batch.items,
            priority=context.run().priority,
        )
    except _WITHOUT_EFFECT:
        step.move(BatchEvent.SUBMIT_DEFERRED)  # it costs no attempt
        raise
    except NotFoundError as error:
        return _upload_again(step.move(BatchEvent.SUBMIT_DEFERRED), error)
    except InvalidRequestError as error:
        step.move(BatchEvent.SUBMIT_REFUSED, error_code=REFUSED, error=str(error))
        return Now()
    except IndeterminateError as error:
        return After(seconds=RETRY_DELAY_S, reason="unavailable", detail=str(error))
    context.checkpoint("submit.done")
    _confirm(step, remote)
    context.checkpoint("submit.journaled")
    return After(seconds=poll_interval(step.batch, context))


def _upload_again(step: Step, error: NotFoundError) -> Outcome:
    """The input waited so long for its submission that the service let it go."""
    batch = step.batch
    if batch.attempt >= MAX_ATTEMPTS:
        return Stuck(
            error=f"batch {batch.number} was uploaded {batch.attempt} times and lost each time: "
            f"{error}; once that is mended, type: embatch resume {batch.run_id}"
        )
    step.context.provider.discard(None, batch.input_ref)
    step.move(BatchEvent.INPUT_LOST, input_ref=None)
    return Now()


def _confirm(step: Step, remote: RemoteBatch) -> None:
    step.move(BatchEvent.SUBMIT_CONFIRMED, remote_name=remote.name)
    if step.context.run().state is RunState.CANCELLED:  # while the submission was under way
        step.context.provider.cancel(remote.name)


def _find(step: Step) -> Outcome:
    """After an ambiguous submit: adopt what bears the label, or hold it absent after two looks."""
    context, batch = step.context, step.batch
    remote = context.provider.find(str(batch.label))
    if remote is not None:
        _confirm(step, remote)
        return Now()
    settled_at = (batch.submitted_at or 0.0) + context.provider.limits.settle_s
    if batch.absences < 1 or context.now() < settled_at:
        step.note(absences=batch.absences + 1)
        return After(seconds=max(0.0, settled_at - context.now()), reason="unavailable")
    context.provider.discard(None, batch.input_ref)  # the next attempt brings its own
    step.move(BatchEvent.HELD_ABSENT, input_ref=None, absences=0)
    return Now()


def _poll(step: Step) -> Outcome:
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
        step.note(polls=polls, **_counts(status))
    return After(seconds=foreseen or poll_interval(batch, context, polls=polls))


def _collect(step: Step) -> Outcome:
    if step.batch.kind != "embed":
        return copies.collect_copies(step)
    return collect.collect_results(step)


def _publish(step: Step) -> Outcome:
    return collect.publish(step)


def _give_way(step: Step) -> Outcome:
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


def poll_interval(batch: BatchRecord, context: RunContext, *, polls: int = 0) -> float:
    """Seconds until the next poll: by the batch's size, longer while nothing moves."""
    fixed = context.config.poll_interval_s or context.provider.limits.poll_interval_s
    if fixed is not None:
        return fixed
    base = next(
        (seconds for items, seconds in _POLL_BY_ITEMS if batch.items < items), _POLL_LARGEST_S
    )
    jitter = 1.0 + 0.2 * context.chance.random()
    return min(MAX_DELAY_S, base * math.pow(POLL_BACKOFF, min(polls, 20)) * jitter)


def backoff(failures: int, context: RunContext) -> float:
    """Seconds to wait after `failures` failures in a row: doubling, with jitter."""
    jitter = 1.0 + 0.2 * context.chance.random()
    return min(MAX_DELAY_S, RETRY_DELAY_S * math.pow(2.0, min(failures, 10))) * jitter


def _counts(status: RemoteStatus) -> dict[str, int]:
    return {"succeeded": status.progress.succeeded, "failed": status.progress.failed}


def _quarantined(step: Step) -> Outcome:
    return Stuck(error=f"batch {step.batch.number} is quarantined: {step.batch.error}")


_ENDINGS: dict[str, BatchEvent] = {
    JobState.FAILED: BatchEvent.JOB_FAILED,
    JobState.EXPIRED: BatchEvent.JOB_EXPIRED,
    JobState.CANCELLED: BatchEvent.JOB_CANCELLED,
}

_STEPS: dict[BatchState, Callable[[Step], Outcome]] = {
    BatchState.PLANNED: _start,
    BatchState.UPLOADING: _upload,
    BatchState.UPLOADED: _submit,
    BatchState.SUBMITTING: _find,
    BatchState.SUBMITTED: _poll,
    BatchState.READY: _collect,
    BatchState.COLLECTED: _publish,
    BatchState.QUARANTINED: _quarantined,
    BatchState.FAILED: _give_way,
    BatchState.EXPIRED: _give_way,
    BatchState.CANCELLED: _give_way,
}
