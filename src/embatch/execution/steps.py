"""What every executor does the same way: one step of a run, and what it leaves in the journal."""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from embatch.errors import (
    EmbatchError,
    JournalError,
    LeaseLostError,
    TransitionRefusedError,
)
from embatch.execution.contexts import is_of_host
from embatch.execution.keeper import HeldLease, LeaseKeeper
from embatch.journal.leases import Claim
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.observe.durations import STEPS
from embatch.runs.accounts import stop_over_budget
from embatch.runs.admission import begin_ahead
from embatch.runs.advance import advance
from embatch.runs.context import RunContext
from embatch.runs.direct import is_late, missed_deadline
from embatch.runs.finish import fail_run, finish_run
from embatch.runs.outcomes import After, Done, Now, Outcome, OverBudget, Stuck
from embatch.runs.pace import RETRY_DELAY_S
from embatch.types.state import RunState

log = logging.getLogger("embatch.execution")

LEASE_S = 60.0
"""A step that is silent for so long is taken over by others."""
BROKEN_S = 0.5
"""A batch whose step broke is due again after so long."""
HANDED_BACK_S = 5.0
"""A step that this machine could not take is offered to all again after so long."""
WORKING_STATES = (RunState.PLANNING, RunState.RUNNING, RunState.PARKED)
"""States in which a run has steps to take."""


class Hurry:
    """Remembers which runs are past the moment from which a deadline allows no waiting."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._hurried: set[str] = set()

    def is_late(self, run: RunRecord, context: RunContext) -> bool:
        """The run is; its batches that wait for quota are woken once."""
        late = is_late(context)
        if late and run.id not in self._hurried:
            self._hurried.add(run.id)
            if (missed := missed_deadline(self._journal, run, now=self._clock())) is not None:
                log.warning("run %s: %s", run.id, missed)
            self._journal.quotas.wake(run.id, now=self._clock())
        return late


def room_for_new(context: RunContext, *, late: bool) -> dict[str, Any]:
    """How many batches may be under way, as the arguments of a claim: no bound for a `late` run."""
    limits = context.provider.limits
    return {
        "max_in_flight": sys.maxsize if late else limits.max_in_flight_batches,
        "max_ahead": None if late else begin_ahead(context),
    }


def take_step(claim: Claim, context: RunContext, lease: HeldLease) -> Outcome:
    """One step of a batch. A run that nothing can help any more is failed."""
    outcome = STEPS.time(claim.batch.state.value, lambda: advance(claim, context, lease.is_held))
    if isinstance(outcome, Stuck):
        if outcome.hopeless or not context.provider.limits.billed:
            fail_run(context.journal, claim.batch.run_id, outcome.error, now=context.now())
        else:
            log.warning("run %s waits for a person: %s", claim.batch.run_id, outcome.error)
    return outcome


def take_finish(context: RunContext, token: str) -> Outcome | None:
    """The end of a run, under its planning lease; None when it is not at its end."""
    leases = context.journal.leases
    if context.run().state is not RunState.RUNNING or leases.has_steps(context.run_id):
        return None
    return STEPS.time("finish", lambda: finish_run(context, token))


def record(
    journal: Journal,
    keeper: LeaseKeeper,
    run: RunRecord,
    lease: HeldLease,
    work: Callable[[HeldLease], Outcome | None],
    *,
    now: Callable[[], float],
    leave: Callable[[str, Exception], None] | None = None,
) -> Outcome | None:
    """What came of `work`; None when it broke. The error that broke it is written into its run.

    With `leave`, an error that may be this machine's own is told to it instead, and the step is
    handed back. Raises JournalError alone, which says nothing of the run.
    """
    try:
        return work(lease)
    except (LeaseLostError, TransitionRefusedError):
        log.info("run %s: another process took over a step", run.id)
    except JournalError:
        raise
    except Exception as error:  # noqa: BLE001 - a step's outer edge: it is recorded
        keeper.renew()
        if leave is not None and is_of_host(error):
            leave(run.id, error)
            return After(seconds=HANDED_BACK_S)
        if lease.is_held():
            fail_with(journal, run, error, now=now())
    return None


def fail_with(journal: Journal, run: RunRecord, error: Exception, *, now: float) -> None:
    """Ends a run with the error of its step."""
    if isinstance(error, EmbatchError):
        code, what = type(error).__name__, str(error)
    elif isinstance(error, OSError):
        code, what = "StorageError", str(error)
    else:
        # Where, not what: the message of a foreign error may hold a user's text.
        place = traceback.extract_tb(error.__traceback__)[-1]
        code = "EmbatchError"
        what = f"unexpected {type(error).__name__} at {place.name}:{place.lineno}"
        log.error("run %s: a step broke: %s", run.id, what)
    fail_run(journal, run.id, what, code=code, now=now)


def give_back(journal: Journal, claim: Claim, outcome: Outcome | None, *, now: float) -> None:
    """Ends the lease of a batch and journals when it is due again, and what it waits for."""
    batch_id, token = claim.batch.id, claim.token
    match outcome:
        case None:
            journal.leases.release(batch_id, token, next_at=now + BROKEN_S)
        case After(seconds=seconds, reason=reason, detail=detail):
            journal.leases.release(
                batch_id, token, next_at=now + seconds, blocked_reason=reason, blocked_detail=detail
            )
        case Stuck(error=error):
            journal.leases.release(
                batch_id, token, next_at=now, blocked_reason="person", blocked_detail=error
            )
        case OverBudget(error=error):
            journal.leases.release(
                batch_id,
                token,
                next_at=now + RETRY_DELAY_S,
                blocked_reason="budget",
                blocked_detail=error,
            )
            stop_over_budget(journal, claim.batch.run_id, error, now=now)
        case Now() | Done():
            journal.leases.release(batch_id, token, next_at=now)
