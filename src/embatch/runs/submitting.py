"""From the plan to a job at the provider: upload, create once, and find what is in doubt."""

from typing import Final

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
from embatch.providers.base import RemoteBatch
from embatch.runs import copies
from embatch.runs.collect import MAX_ATTEMPTS
from embatch.runs.outcomes import After, Now, Outcome, Stuck
from embatch.runs.pace import RETRY_DELAY_S, poll_interval
from embatch.runs.step import Step
from embatch.types.state import BatchEvent, RunState

REFUSED: Final = "refused"
"""Error code of a batch that the service refused because of what is in it."""
_WITHOUT_EFFECT: Final = (
    RateLimitError,
    ProviderUnavailableError,
    AuthenticationError,
    PermissionDeniedError,
    ConfigError,
)
"""Errors of a submission that surely made no batch, and say nothing about its rows."""


def start(step: Step) -> Outcome:
    """Gives the batch the label of a new attempt, and begins its upload."""
    if step.batch.kind != "embed":
        return copies.wait_for_owners(step)
    attempt = step.batch.attempt + 1
    label = step.label(attempt)
    return upload(step.move(BatchEvent.UPLOAD_STARTED, attempt=attempt, label=label, polls=0))


def upload(step: Step) -> Outcome:
    """Brings the items to the provider; done again after a crash it leaves one input there."""
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


def submit(step: Step) -> Outcome:
    """Creates the job, once: the intent is journaled before the call."""
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


def find(step: Step) -> Outcome:
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
