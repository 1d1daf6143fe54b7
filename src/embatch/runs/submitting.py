"""From the plan to a job at the provider: upload, create once, and find what is in doubt."""

from collections.abc import Sequence
from typing import Any, Final

from embatch.errors import (
    AuthenticationError,
    ConfigError,
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    QuotaFullError,
    RateLimitError,
)
from embatch.journal.batches import Also
from embatch.providers.base import RemoteBatch
from embatch.runs import admission, copies
from embatch.runs.collect import MAX_ATTEMPTS
from embatch.runs.cost import reservations
from embatch.runs.direct import send_directly
from embatch.runs.outcomes import After, Now, Outcome, Stuck
from embatch.runs.pace import RETRY_DELAY_S, poll_interval
from embatch.runs.probe import refusal
from embatch.runs.step import Step
from embatch.runs.trouble import in_doubt, is_elsewhere
from embatch.runs.twins import adopt_twin
from embatch.types.state import BatchEvent, RunState

REFUSED: Final = "refused"
"""Error code of a batch that the service refused because of what is in it."""
_WITHOUT_EFFECT: Final = (
    ProviderUnavailableError,
    AuthenticationError,
    PermissionDeniedError,
    ConfigError,
)
"""Errors of a submission that surely made no batch, and say nothing about its rows."""

_FRESH: Final[dict[str, Any]] = {
    "polls": 0,
    "moved_at": None,
    "cancel_asked_at": None,
    "remote_state": None,
    "results_until": None,
    "error_code": None,
    "error": None,
}
"""What a new attempt knows of its job."""


def start(step: Step) -> Outcome:
    """Gives the batch the label of a new attempt, and begins its upload."""
    if step.batch.kind != "embed":
        return copies.wait_for_owners(step)
    if adopt_twin(step, look=False) or send_directly(step):
        return Now()
    if (failed := refusal(step)) is not None:
        return Stuck(error=failed, hopeless=True)
    if admission.is_too_large(step):
        return admission.split_up(step)
    attempt = step.batch.attempt + 1
    label = step.label(attempt)
    also = reservations(step, label)
    return upload(
        step.move(BatchEvent.UPLOAD_STARTED, attempt=attempt, label=label, also=also, **_FRESH)
    )


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
    if adopt_twin(step, look=True) or send_directly(step):
        return Now()
    if admission.is_too_large(step):
        return admission.split_up(step)
    try:
        step = _intend(step)
    except QuotaFullError as full:
        return admission.wait_for_room(step, full)
    batch = step.batch
    context.checkpoint("submit.intended")
    try:
        remote = context.provider.submit(
            str(batch.input_ref),
            str(batch.label),
            items=batch.items,
            priority=context.run().priority,
        )
    except RateLimitError as error:
        step.move(BatchEvent.SUBMIT_DEFERRED, also=admission.declined(step, error))
        return admission.wait_refused(step, error)
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
    confirm(step, remote, also=admission.taken(step))
    context.checkpoint("submit.journaled")
    return After(seconds=poll_interval(step.batch, context))


def _intend(step: Step) -> Step:
    """Journals the intent, if the quota has room as far as it is known; else QuotaFullError."""
    return step.move(
        BatchEvent.SUBMIT_INTENDED,
        submitted_at=step.context.now(),
        absences=0,
        tokens_estimated=admission.estimated(step),
        also=admission.asking(step),
    )


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


def confirm(step: Step, remote: RemoteBatch, also: Sequence[Also] = ()) -> None:
    """Journals that the job is there under this name."""
    step.move(
        BatchEvent.SUBMIT_CONFIRMED,
        remote_name=remote.name,
        moved_at=step.context.now(),
        polls=0,
        also=also,
    )
    if step.context.run().state is RunState.CANCELLED:  # while the submission was under way
        step.context.provider.cancel(remote.name)


def find(step: Step) -> Outcome:
    """After an ambiguous submit: adopt what bears the label, or hold it absent after two looks."""
    context, batch = step.context, step.batch
    asked_at, settle_s = batch.submitted_at or 0.0, context.provider.limits.settle_s
    try:
        remote = context.provider.find(str(batch.label))
    except ProviderUnavailableError as error:
        if context.now() < asked_at + max(settle_s, context.config.stuck_after_s):
            raise
        return in_doubt(step, f"since the provider's list cannot be read through: {error}")
    if remote is not None:
        confirm(step, remote)
        return Now()
    settled_at = asked_at + settle_s
    if batch.absences < 1 or context.now() < settled_at:
        step.note(absences=batch.absences + 1)
        return After(seconds=max(0.0, settled_at - context.now()), reason="unavailable")
    if is_elsewhere(step):
        return in_doubt(step, "since it is not in the list that is seen now")
    context.provider.discard(None, batch.input_ref)  # the next attempt brings its own
    step.move(BatchEvent.HELD_ABSENT, input_ref=None, absences=0)
    return Now()
