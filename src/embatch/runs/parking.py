"""Parks a run whose quota of the day is used up, and wakes it when it is there again."""

from embatch.errors import TransitionRefusedError
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.runs.admission import held_until
from embatch.runs.context import RunContext
from embatch.types.state import RunEvent, RunState


def park(context: RunContext) -> bool:
    """Parks the run when nothing of it can be sent before the day turns. Its jobs are still
    looked at, and what they bring is written. Gives whether it is parked now."""
    if not context.provider.limits.billed:
        return False
    until = held_until(context)
    if until is None or not context.journal.quotas.waits(context.run_id):
        return False
    try:
        context.journal.transition_run(
            context.run_id,
            RunEvent.PARKED,
            expected=RunState.RUNNING,
            now=context.now(),
            resume_at=until,
        )
    except TransitionRefusedError:
        return False  # another process parked or ended it in this instant
    return True


def next_due(journal: Journal, run: RunRecord) -> float | None:
    """When a step of the run is due, or the run itself goes on; None when nothing is."""
    if run.state is not RunState.PARKED:
        return journal.leases.next_due(run.id)
    moments = (journal.leases.next_due(run.id, parked=True), run.resume_at)
    return min((moment for moment in moments if moment is not None), default=None)


def wake_parked(journal: Journal, run: RunRecord, *, now: float) -> bool:
    """Sets a parked run going whose time has come. Gives whether it goes now."""
    if run.resume_at is not None and run.resume_at > now:
        return False
    try:
        journal.transition_run(
            run.id, RunEvent.RESUMED, expected=RunState.PARKED, now=now, resume_at=None
        )
    except TransitionRefusedError:
        return False  # another process did
    journal.quotas.wake(run.id, now=now)
    return True
