"""The gate before each create: asks the learned quota, and tells it what came of the create.

What is asked and told goes into the journal in the same transaction as the batch's change of
state, so that no two threads or processes send what only one of them may.
"""

from collections.abc import Mapping
from typing import Any, Final

from embatch.errors import QuotaFullError, RateLimitError
from embatch.journal.batches import Also
from embatch.journal.quotas import Occupancy, Ruling
from embatch.journal.store import Journal
from embatch.runs import quota
from embatch.runs.collect import child_batch, clear_away
from embatch.runs.context import RunContext
from embatch.runs.cost import prompt_bytes
from embatch.runs.good_rows import in_need
from embatch.runs.outcomes import After, Done, Outcome
from embatch.runs.pace import MAX_DELAY_S
from embatch.runs.quota import Belief
from embatch.runs.step import Step
from embatch.runs.tokens import batch_tokens, counted_rate
from embatch.runs.trouble import halves
from embatch.types.state import BatchEvent, BatchState

AHEAD: Final = 4
"""Batches of a run that are uploaded, or being so, before there is room for them: enough to find
one that fits, and few enough that no input waits for days."""
BOUND_LOOK_S: Final = 60.0
"""While a batch waits for room, jobs are looked at no later than so many seconds from now."""
_WHY: Final[Mapping[quota.Why, str]] = {
    "minute": "the service asked for a wait",
    "day": "the day's quota is used up",
    "refused": "the service refused the last create without a reason: it is asked again later",
    "trial": "another batch is being tried first",
    "room": "what is in flight fills the quota, as far as it is known",
}


def believed(context: RunContext) -> Belief:
    """What is believed of the quota that the run counts against."""
    return Belief.from_json(context.journal.quotas.believed(context.provider.scope))


def estimated(step: Step) -> int:
    """Tokens of the batch, as the service counts them as far as is known by now."""
    context = step.context
    return batch_tokens(
        step.batch,
        context.provider.limits.max_item_tokens,
        counted_rate(context.journal, context.space),
        prompt_bytes=prompt_bytes(context.space),
    )


def asking(step: Step) -> list[Also]:
    """Goes with the intent to create: raises QuotaFullError, which undoes it, when it must wait."""
    context, now = step.context, step.context.now()
    if not context.provider.limits.billed:
        return []

    def decide(values: Mapping[str, Any], load: Occupancy) -> Ruling:
        belief = Belief.from_json(values)
        verdict = quota.admit(belief, load, label=str(step.batch.label), now=now)
        match verdict:
            case quota.Go(belief=changed):
                return Ruling(belief=changed.to_json())
            case quota.Wait(seconds=seconds, why=why):
                raise QuotaFullError(_WHY[why], retry_after_s=seconds, per_day=why == "day")

    return [context.journal.quotas.changing(context.provider.scope, decide, now=now)]


def taken(step: Step) -> list[Also]:
    """Goes with the confirmation of a create."""
    context, now = step.context, step.context.now()
    if not context.provider.limits.billed:
        return []

    def decide(values: Mapping[str, Any], load: Occupancy) -> Ruling:
        belief, free = quota.accepted(
            Belief.from_json(values), load, label=str(step.batch.label), now=now
        )
        return Ruling(belief=belief.to_json(), cancelled_are_free=free)

    return [context.journal.quotas.changing(context.provider.scope, decide, now=now)]


def declined(step: Step, error: RateLimitError) -> list[Also]:
    """Goes with the return of a batch whose create was answered by 429."""
    context, batch, now = step.context, step.batch, step.context.now()
    if not context.provider.limits.billed:
        return []
    refusal = quota.Refusal(
        label=str(batch.label),
        tokens=batch.tokens_estimated,
        asked_at=batch.submitted_at or now,
        retry_after_s=error.retry_after_s,
        per_day=error.per_day,
    )

    def decide(values: Mapping[str, Any], load: Occupancy) -> Ruling:
        belief = quota.refused(Belief.from_json(values), load, refusal, now=now)
        return Ruling(belief=belief.to_json())

    return [context.journal.quotas.changing(context.provider.scope, decide, now=now)]


def wait_for_room(step: Step, full: RateLimitError) -> Outcome:
    """The gate is shut: the batch comes back, and jobs that may make room are looked at sooner."""
    context = step.context
    seconds = quota.ROOM_LOOK_S if full.retry_after_s is None else full.retry_after_s
    if context.config.deadline is not None:  # it may be time to send the batch directly
        seconds = min(seconds, MAX_DELAY_S)
    if context.config.poll_interval_s is None:
        context.journal.quotas.look_sooner(context.run_id, by=context.now() + BOUND_LOOK_S)
    return After(seconds=seconds, reason="quota", detail=str(full))


def wait_refused(step: Step, error: RateLimitError) -> Outcome:
    """The service has refused: the batch comes back when the gate may let it through."""
    context = step.context
    belief = believed(context)
    held = belief.hold_until - context.now()
    seconds = held if held > 0 else quota.ROOM_LOOK_S
    return wait_for_room(step, RateLimitError(str(error), retry_after_s=seconds))


def is_too_large(step: Step) -> bool:
    """Batches of this size are refused even alone."""
    if not step.context.provider.limits.billed or step.batch.items < 2:
        return False
    least = believed(step.context).too_large
    return least is not None and estimated(step) >= least


def split_up(step: Step) -> Outcome:
    """The batch goes on in two halves. It costs no attempt: nothing was created."""
    batch, context = step.batch, step.context
    attempt = batch.attempt - (batch.state is BatchState.UPLOADED)
    children = [
        child_batch(step, piece, attempt=attempt, in_vain={}) for piece in halves(in_need(batch))
    ]
    context.checkpoint("quota.splitting")
    step.move(
        BatchEvent.GAVE_WAY,
        children=children,
        finished_at=context.now(),
        error=f"the service does not take {batch.tokens_estimated} tokens at once",
    )
    clear_away(step)
    return Done()


def begin_ahead(context: RunContext) -> int | None:
    """How many batches may be uploaded ahead of their create; None where nothing is enqueued."""
    if not context.provider.limits.billed:
        return None
    return AHEAD if held_until(context) is None else 0


def held_until(context: RunContext) -> float | None:
    """When the quota of the day is there again for which the run waits; None when it does not.

    A run with a deadline does not: what is not sent may go through the interactive API.
    """
    belief = believed(context)
    held = belief.hold == "day" and belief.hold_until > context.now()
    return belief.hold_until if held and context.config.deadline is None else None


def try_at_once(journal: Journal, run_id: str, *, now: float) -> None:
    """A person resumes a run that waits for its quota: no wait that was imposed holds."""

    def decide(values: Mapping[str, Any], _: Occupancy) -> Ruling:
        return Ruling(belief=quota.released(Belief.from_json(values)).to_json())

    for scope in journal.quotas.scopes_of(run_id):
        journal.quotas.change(scope, decide, now=now)
    journal.quotas.wake(run_id, now=now)
