"""One guarded step of one batch: read its state, do the one thing that follows, journal it.

Inside a step the order is: journal the intent, act, journal the fact. A step never sleeps, loops
or spawns; it says when to come back. Whatever is left undone by a crash is seen from the state.
"""

from collections.abc import Callable

from embatch.errors import BudgetExceededError, ProviderUnavailableError, RateLimitError
from embatch.journal.leases import Claim
from embatch.runs import collect, copies
from embatch.runs.context import RunContext
from embatch.runs.direct import collect_directly, is_direct
from embatch.runs.giving_way import give_way
from embatch.runs.outcomes import After, BlockedReason, Outcome, OverBudget
from embatch.runs.pace import BUDGET_DELAY_S, MAX_DELAY_S, backoff
from embatch.runs.polling import poll
from embatch.runs.quarantine import quarantined
from embatch.runs.step import Step
from embatch.runs.submitting import find, start, submit, upload
from embatch.runs.withdrawal import audit_published
from embatch.types.state import BatchState


def advance(
    claim: Claim, context: RunContext, is_held: Callable[[], bool] = lambda: True
) -> Outcome:
    """Takes the one step that the batch's state asks for. The lease of `claim` must be held.

    Long steps ask `is_held` on their way and end with LeaseLostError when it is not.
    """
    step = Step(claim.batch, claim.token, context, is_held)
    try:
        return _STEPS[claim.batch.state](step)
    except BudgetExceededError as error:
        if error.may_free:  # the end of a purchase wakes it earlier
            return After(seconds=BUDGET_DELAY_S, reason="budget", detail=str(error))
        return OverBudget(error=str(error))
    except RateLimitError as error:
        failures = _failures(claim, "quota")
        step.note(polls=failures + 1)
        wait = error.retry_after_s or backoff(failures, context)
        if error.per_day:  # a wait in seconds is a slip of the service
            wait = max(wait, MAX_DELAY_S)
        return After(seconds=wait, reason="quota", detail=str(error))
    except ProviderUnavailableError as error:
        failures = _failures(claim, "unavailable")
        step.note(polls=failures + 1)
        wait = max(backoff(failures, context), error.retry_after_s or 0.0)
        return After(seconds=wait, reason="unavailable", detail=str(error))


def _failures(claim: Claim, reason: BlockedReason) -> int:
    """Failures in a row for this reason. Looks that found nothing new are counted in the same
    column: they are none."""
    return claim.batch.polls if claim.batch.blocked_reason == reason else 0


def _collect(step: Step) -> Outcome:
    if step.batch.kind != "embed":
        return copies.collect_copies(step)
    if is_direct(step):
        return collect_directly(step)
    return collect.collect_results(step)


_STEPS: dict[BatchState, Callable[[Step], Outcome]] = {
    BatchState.PLANNED: start,
    BatchState.UPLOADING: upload,
    BatchState.UPLOADED: submit,
    BatchState.SUBMITTING: find,
    BatchState.SUBMITTED: poll,
    BatchState.READY: _collect,
    BatchState.COLLECTED: collect.publish,
    BatchState.PUBLISHED: audit_published,
    BatchState.QUARANTINED: quarantined,
    BatchState.FAILED: give_way,
    BatchState.EXPIRED: give_way,
    BatchState.CANCELLED: give_way,
}
