"""What a job of a worker does, and which jobs follow from it.

A run's `dispatch` begins what its gates let begin, and gives each batch a chain of `step` jobs of
its own; the end of a step that may free room dispatches again. Batches that wait to be begun hold
no job: no cost grows with their number. A batch of the local engine is one long turn instead, on
one machine: its service is a folder there. Leases in the journal are the truth; a job that comes
twice, or too soon, finds nothing to do.
"""

import logging
import math
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from embatch.errors import JournalError, NotFoundError, StorageError
from embatch.execution.contexts import Contexts, is_of_host, require_standing
from embatch.execution.jobs import Job, Task, is_worked, job_of
from embatch.execution.keeper import HeldLease, LeaseKeeper
from embatch.execution.patience import Patience
from embatch.execution.presence import Presence
from embatch.execution.rescue import rescue
from embatch.execution.steps import (
    HANDED_BACK_S,
    LEASE_S,
    Hurry,
    fail_with,
    give_back,
    record,
    room_for_new,
    take_finish,
    take_step,
)
from embatch.journal.leases import Claim
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.journal.workers import Queue, queue_of
from embatch.observe.durations import STEPS
from embatch.process import owner_identity
from embatch.runs.context import RunContext
from embatch.runs.outcomes import After, Now, Outcome
from embatch.runs.parking import park, wake_parked
from embatch.runs.planning import advance_planning
from embatch.runs.trouble import call_person
from embatch.runs.twins import Lookout
from embatch.types.state import FINAL_BATCH_STATES, RunState

log = logging.getLogger("embatch.execution")

PLANNING_LOOK_S: Final = 1.0
"""While a run is planned, its new batches are looked for so often."""
LONGEST_S: Final = 600.0
"""A run is looked at no later than so many seconds from now."""
AT_ONCE: Final = 100
"""Batches that a dispatch looks after beside the one it begins."""


@dataclass(frozen=True, slots=True)
class Turn:
    """First `jobs` are put into their queues, then `work` is done, which gives more of them."""

    jobs: Sequence[Job] = ()
    work: Callable[[], Sequence[Job]] | None = None


class Turns:
    """The jobs of one worker process. Every method may be called from any thread."""

    def __init__(
        self,
        journal: Journal,
        contexts: Contexts,
        *,
        keeper: LeaseKeeper,
        presence: Presence,
        stopping: threading.Event,
        clock: Callable[[], float],
        patience: Patience | None = None,
    ) -> None:
        self._journal = journal
        self._contexts = contexts
        self._keeper = keeper
        self._presence = presence
        self._stopping = stopping
        self._clock = clock
        self._owner = owner_identity()
        self._patience = patience or Patience(stopping)
        self._lookout = Lookout()
        self._hurry = Hurry(journal, clock)

    def take(self, task: Task, run_id: str, batch_id: int | None = None) -> Turn:
        """What to do about a job; nothing when its run needs it no more."""
        run = self._patience.ask(lambda: self._journal.find_run(run_id))
        if run is None or not is_worked(run):
            return Turn()
        try:
            return self._patience.ask(lambda: self._take(run, task, batch_id))
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - it is recorded in the run
            if is_of_host(error):
                self._contexts.leave(run.id, error)
                return self._elsewhere(run, task, batch_id)
            fail_with(self._journal, run, error, now=self._clock())
            return Turn()

    def rescue(self, queue: Queue) -> Sequence[Job]:
        """Jobs for all that should have one, whatever became of those that were there."""
        return self._patience.ask(lambda: rescue(self._journal, self._contexts, queue))

    def _take(self, run: RunRecord, task: Task, batch_id: int | None) -> Turn:
        context = self._contexts.of(run)
        if context is None:
            return self._elsewhere(run, task, batch_id)
        require_standing(context.paths)
        match task:
            case "dispatch":
                return self._dispatch(run, context)
            case "step":
                return self._step(run, context, batch_id)
            case "plan":
                if run.state is not RunState.PLANNING:
                    return Turn()
                return self._alone(run, task, partial(self._plan, context), self._planned)
            case "finish":
                finish = partial(self._finish, context)
                return self._alone(run, task, finish, self._finished)
            case "watch":
                return self._alone(run, task, partial(self._watch, context), lambda *_: ())

    def _elsewhere(self, run: RunRecord, task: Task, batch_id: int | None) -> Turn:
        """A job that this machine cannot take, offered to all again in a while."""
        return Turn([job_of(run, task, batch_id, self._clock() + HANDED_BACK_S)])

    def _record(
        self, run: RunRecord, lease: HeldLease, work: Callable[[HeldLease], Outcome | None]
    ) -> Outcome | None:
        def taken(lease: HeldLease) -> Outcome | None:
            outcome = work(lease)
            self._contexts.works(run.id)
            return outcome

        return record(
            self._journal,
            self._keeper,
            run,
            lease,
            taken,
            now=self._clock,
            leave=self._contexts.leave,
        )

    # Dispatch: what may begin

    def _dispatch(self, run: RunRecord, context: RunContext) -> Turn:
        now, jobs = self._clock(), list[Job]()
        if self._lookout.is_due(context):
            jobs.append(job_of(run, "watch"))
        if run.state is RunState.PARKED:
            if not wake_parked(self._journal, run, now=now):
                return Turn([*jobs, job_of(run, "dispatch", at=self._soon(run.resume_at))])
            run = self._journal.get_run(run.id)
        late = self._hurry.is_late(run, context)
        local = queue_of(run) == "compute"
        room = room_for_new(context, late=late)
        if local:  # each machine takes no more than it has turns for
            room = {**room, "max_in_flight": sys.maxsize}
        claim = self._journal.leases.claim_step(
            run.id, owner=self._owner, lease_s=LEASE_S, now=now, new_only=not local, **room
        )
        if not local:
            due = self._journal.dues.free(run.id, by=now, limit=AT_ONCE)
            jobs += [job_of(run, "step", one.batch_id) for one in due]
        if claim is not None:
            return Turn([*jobs, job_of(run, "dispatch")], partial(self._move, run, context, claim))
        return Turn([*jobs, *self._nothing_new(run, context, local=local)])

    def _nothing_new(self, run: RunRecord, context: RunContext, *, local: bool) -> Sequence[Job]:
        """When the run is looked at again of which nothing can be begun now."""
        now, dues = self._clock(), self._journal.dues
        if run.state is RunState.PLANNING:
            return [job_of(run, "dispatch", at=now + PLANNING_LOOK_S)]
        if not self._journal.leases.has_steps(run.id):
            return [job_of(run, "finish")]
        if park(context):
            run = self._journal.get_run(run.id)
            return [job_of(run, "dispatch", at=self._soon(run.resume_at))]
        if call_person(self._journal, run.id, now=now):
            return []
        moments = [dues.next_new(run.id, after=now)]
        if local:
            moments += [one.next_at for one in dues.free(run.id, by=math.inf, limit=1)]
        later = [moment for moment in moments if moment is not None and moment > now]
        return [job_of(run, "dispatch", at=self._soon(min(later)))] if later else []

    def _soon(self, moment: float | None) -> float:
        latest = self._clock() + LONGEST_S
        return latest if moment is None else min(moment, latest)

    # Batches

    def _step(self, run: RunRecord, context: RunContext, batch_id: int | None) -> Turn:
        if batch_id is None or queue_of(run) == "compute":
            return Turn([job_of(run, "dispatch")])
        claim = self._journal.dues.claim(
            batch_id, owner=self._owner, lease_s=LEASE_S, now=self._clock()
        )
        if claim is not None:
            return Turn((), partial(self._move, run, context, claim))
        due = self._journal.dues.still_free(batch_id)
        if due is None or due.next_at <= self._clock():
            return Turn()  # in hand, at its end, or held back with its run
        return Turn([job_of(run, "step", batch_id, due.next_at)])

    def _move(self, run: RunRecord, context: RunContext, claim: Claim) -> Sequence[Job]:
        """Takes a step of a leased batch, or of the local engine's all; gives what follows."""
        whole = queue_of(run) == "compute"
        work = partial(self._embed if whole else take_step, claim, context)
        at_work = self._presence.at(run.id, claim.batch.state.value, claim.batch.number)
        outcome = None
        try:
            with self._keeper.hold(claim.token) as lease, at_work:
                outcome = self._record(run, lease, work)
        except JournalError as error:
            if not self._patience.bears(error):
                raise
        finally:
            self._patience.ask(lambda: give_back(self._journal, claim, outcome, now=self._clock()))
        return self._patience.ask(lambda: self._after(run, claim, whole=whole))

    def _embed(self, claim: Claim, context: RunContext, lease: HeldLease) -> Outcome:
        """Every step of a batch of the local engine, until it ends, must wait, or the worker."""
        while True:
            outcome = take_step(claim, context, lease)
            match outcome:
                case Now():
                    over = self._stopping.is_set()
                case After(seconds=seconds, reason=None):
                    over = self._stopping.wait(seconds)
                case _:
                    return outcome
            batch = self._journal.batches.get(claim.batch.id)
            if over or batch.state in FINAL_BATCH_STATES or not is_worked(context.run()):
                return outcome
            claim = replace(claim, batch=batch)

    def _after(self, run: RunRecord, claim: Claim, *, whole: bool) -> Sequence[Job]:
        try:
            batch = self._journal.batches.get(claim.batch.id)
        except NotFoundError:
            return ()  # its run was forgotten
        due = self._journal.dues.still_free(batch.id)
        if whole:
            at = None if due is None or due.next_at <= self._clock() else due.next_at
            return [job_of(run, "dispatch", at=at)]
        jobs = [] if due is None else [job_of(run, "step", batch.id, due.next_at)]
        if batch.state is not claim.batch.state:
            jobs.append(job_of(run, "dispatch"))
        return jobs

    # What concerns the whole run, one process at a time

    def _alone(
        self,
        run: RunRecord,
        task: Task,
        work: Callable[[HeldLease], Outcome | None],
        after: Callable[[RunRecord, Outcome | None], Sequence[Job]],
    ) -> Turn:
        token = self._journal.leases.claim_planning(run.id, owner=self._owner, lease_s=LEASE_S)
        if token is None:
            return Turn()

        def take() -> Sequence[Job]:
            outcome = None
            try:
                with self._keeper.hold(token) as lease, self._presence.at(run.id, task):
                    outcome = self._record(run, lease, work)
            except JournalError as error:
                if not self._patience.bears(error):
                    raise
            finally:
                self._patience.ask(lambda: self._journal.leases.release_planning(run.id, token))
            now = self._patience.ask(lambda: self._journal.find_run(run.id))
            return after(now, outcome) if now is not None and is_worked(now) else ()

        return Turn((), take)

    def _plan(self, context: RunContext, lease: HeldLease) -> None:
        _require_inputs(context)

        def stopping() -> bool:
            return lease.lost or self._stopping.is_set()

        STEPS.time("planning", lambda: advance_planning(context, lease.token, stopping))

    def _planned(self, run: RunRecord, outcome: Outcome | None) -> Sequence[Job]:
        dispatch = job_of(run, "dispatch")
        if run.state is not RunState.PLANNING:
            return [dispatch]
        at = self._clock() + outcome.seconds if isinstance(outcome, After) else None
        return [job_of(run, "plan", at=at), dispatch]

    def _finish(self, context: RunContext, lease: HeldLease) -> Outcome | None:
        return take_finish(context, lease.token)

    def _finished(self, run: RunRecord, outcome: Outcome | None) -> Sequence[Job]:
        if isinstance(outcome, After):
            return [job_of(run, "finish", at=self._clock() + outcome.seconds)]
        return [job_of(run, "dispatch")]

    def _watch(self, context: RunContext, _: HeldLease) -> None:
        self._lookout.look(context)


def _require_inputs(context: RunContext) -> None:
    """Raises StorageError that names the input which this machine cannot see, and the machine."""
    for name in context.config.inputs:
        if "://" not in name and not Path(name).exists():
            raise StorageError(
                f"{name} is not there on {socket.gethostname()}, where a worker would plan the "
                "run: put the inputs of a run with --execution workers on a path that every "
                "machine mounts, or in object storage"
            )
