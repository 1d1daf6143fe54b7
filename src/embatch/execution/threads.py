"""Works runs in this process: a few threads that take whatever step is due."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from embatch.errors import JournalError
from embatch.execution.contexts import Contexts
from embatch.execution.keeper import HeldLease, LeaseKeeper
from embatch.execution.patience import Patience
from embatch.execution.presence import Presence
from embatch.execution.steps import (
    BROKEN_S,
    LEASE_S,
    WORKING_STATES,
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
from embatch.journal.workers import Trouble
from embatch.observe.durations import STEPS
from embatch.process import is_known_dead, owner_identity
from embatch.runs.context import RunContext
from embatch.runs.outcomes import After, Outcome, OverBudget, Stuck
from embatch.runs.parking import next_due, park, wake_parked
from embatch.runs.planning import advance_planning
from embatch.runs.trouble import call_person
from embatch.runs.twins import Lookout
from embatch.types.state import RunState

log = logging.getLogger("embatch.execution")

IDLE_S = BROKEN_S
"""Longest sleep of a thread with nothing to do: other processes may have made work."""

_Work = Callable[[HeldLease], Outcome | None]
"""A step, to be taken while its lease is held."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A step that is due, with the lease under which it may be taken."""

    run: RunRecord
    token: str
    what: str
    """What is done, for those who watch: the state of the batch that it moves, or its name."""
    batch: int | None
    """The number of that batch."""
    work: _Work
    give_back: Callable[[Outcome | None], None]
    """Ends the lease; the outcome is None when the step broke."""


class ThreadExecutor:
    """Steps through runs until they are finished or `stop` is called."""

    def __init__(
        self,
        journal: Journal,
        open_context: Callable[[RunRecord], RunContext],
        *,
        close_context: Callable[[str], None] = lambda _: None,
        threads: int = 3,
        planning_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._owner = owner_identity()
        self._threads = threads
        self._planning_only = planning_only
        self._contexts = Contexts(open_context, close_context, clock)
        self._lookout = Lookout()
        self._hurry = Hurry(journal, clock)
        self._finish_at: dict[str, float] = {}
        self._busy: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._keeper = LeaseKeeper(journal.leases, lease_s=LEASE_S)
        self._planned_here: set[str] = set()
        self._looking = threading.Lock()
        self._wake = threading.Event()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._patience = Patience(self._stopping)
        self._presence = Presence(
            journal.workers, execution="threads", concurrency=threads, clock=clock
        )

    def troubles(self) -> list[Trouble]:
        """The runs that this process cannot work, each with what is wrong here."""
        return self._contexts.troubles()

    def stop(self) -> None:
        """Asks the threads to end after their present step. Safe in a signal handler's thread."""
        self._stopping.set()
        self._news.set()

    def work(
        self,
        run_ids: Sequence[str] | None = None,
        *,
        until: Callable[[], bool],
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> None:
        """Takes steps of `run_ids`, or of every run, until `until()` holds or `stop` is called.

        After `timeout_s` no step is begun any more. `until` is asked in the calling thread, every
        `poll_s` seconds and when a run has ended or its plan stands. An error that belongs to no
        run, such as a journal that is gone, is raised here.
        """
        self._patience.ask(lambda: self._journal.leases.release_dead(is_known_dead))
        threads = [
            threading.Thread(target=self._loop, args=(run_ids,), name=f"embatch-step-{n}")
            for n in range(self._threads)
        ]
        self._keeper.start()
        self._presence.start()
        for thread in threads:
            thread.start()
        try:
            ends_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
            while not self._stopping.is_set() and (left := ends_at - time.monotonic()) > 0:
                self._news.clear()
                if self._is_over(until):
                    break
                self._news.wait(min(poll_s, left))
        finally:
            self._stopping.set()
            self._wake.set()
            for thread in threads:
                thread.join()
            self._keeper.stop()
            self._presence.stop()
        if self._failure is not None:
            raise self._failure

    def _is_over(self, until: Callable[[], bool]) -> bool:
        try:
            return until()
        except JournalError as error:
            if not self._patience.bears(error):
                raise
            return False

    def _loop(self, run_ids: Sequence[str] | None) -> None:
        try:
            while not self._stopping.is_set():
                # One thread at a time looks for work, or sleeps until there is some.
                with self._looking:
                    found = self._patience.ask(lambda: self._next_step(run_ids))
                if found is not None:
                    self._take(found)
        except BaseException as error:  # noqa: BLE001 - a thread's outer edge: `work` raises it
            away = isinstance(error, JournalError) and error.transient
            if not (away and self._stopping.is_set()):  # what was in hand is taken up later
                self._failure = error
            self.stop()

    def _next_step(self, run_ids: Sequence[str] | None) -> _Found | None:
        """Waits until a step is due and leases it; None when it is time to stop."""
        while not self._stopping.is_set():
            self._wake.clear()
            runs = self._journal.list_runs(states=WORKING_STATES)
            wanted = [run for run in runs if run_ids is None or run.id in run_ids]
            self._let_go({run.id for run in wanted})
            workable: list[RunRecord] = []
            for run in sorted(wanted, key=lambda run: (-run.priority, run.created_at)):
                try:
                    context = self._contexts.of(run, alone=run_ids is not None)
                    if context is None:
                        continue
                    found = self._find(run, context)
                except JournalError:
                    raise  # says nothing about the run
                except Exception as error:  # noqa: BLE001 - it is recorded in the run
                    fail_with(self._journal, run, error, now=self._clock())
                    self._news.set()
                    continue
                if found is not None:
                    self._count(run.id, 1)
                    return found
                workable.append(run)
            self._rest(workable)
        return None

    def _count(self, run_id: str, steps: int) -> None:
        with self._counting:
            self._busy[run_id] += steps

    def _let_go(self, working: set[str]) -> None:
        """Closes what was open for runs that have ended and have no step in hand."""
        with self._counting:
            self._busy += Counter()  # drops what stands at zero
            busy = set(self._busy)
        self._contexts.let_go(working | busy)

    def _find(self, run: RunRecord, context: RunContext) -> _Found | None:
        watching = not self._planning_only and self._lookout.is_due(context)
        if watching and (token := self._lease_planning(run.id)):
            return self._planning_step(run, token, "watch", lambda _: self._lookout.look(context))
        free = len(self._planned_here) < max(1, self._threads - 1)  # one stays for batches
        planning = run.state is RunState.PLANNING and free
        if planning and (token := self._lease_planning(run.id)):
            return self._planning_step(run, token, "plan", partial(self._plan, context))
        if self._planning_only:
            return None
        leases, parked = self._journal.leases, run.state is RunState.PARKED
        if parked and wake_parked(self._journal, run, now=self._clock()):
            return None
        late = self._hurry.is_late(run, context)
        claim = leases.claim_step(
            run.id,
            owner=self._owner,
            lease_s=LEASE_S,
            now=self._clock(),
            parked=parked and not late,
            **room_for_new(context, late=late),
        )
        if claim is not None:
            batch, work = claim.batch, partial(take_step, claim, context)
            back = partial(self._release, claim)
            return _Found(run, claim.token, batch.state.value, batch.number, work, back)
        if run.state is not RunState.RUNNING:
            return None
        if leases.has_steps(run.id):
            if not park(context) and call_person(self._journal, run.id, now=self._clock()):
                self._news.set()
            return None
        if self._finish_at.get(run.id, 0.0) > self._clock():
            return None
        if (token := self._lease_planning(run.id)) is None:
            return None
        return self._planning_step(run, token, "finish", partial(self._finish, context))

    def _planning_step(self, run: RunRecord, token: str, what: str, work: _Work) -> _Found:
        def back(_: Outcome | None) -> None:
            self._journal.leases.release_planning(run.id, token)
            self._planned_here.discard(run.id)
            self._news.set()

        return _Found(run, token, what, None, work, back)

    def _take(self, found: _Found) -> None:
        """Takes a step. What it meets is written into its run, unless it says nothing of it."""
        outcome, run = None, found.run
        at_work = self._presence.at(run.id, found.what, found.batch)
        try:
            with self._keeper.hold(found.token) as lease, at_work:
                outcome = record(
                    self._journal, self._keeper, run, lease, found.work, now=self._clock
                )
        except JournalError as error:
            if not self._patience.bears(error):
                raise
        finally:
            self._patience.ask(lambda: found.give_back(outcome))
            self._count(found.run.id, -1)
            self._wake.set()
            if outcome is None or isinstance(outcome, (Stuck, OverBudget)):
                self._news.set()

    def _lease_planning(self, run_id: str) -> str | None:
        """Leases the planning or the finish of a run; None while anyone has it."""
        if run_id in self._planned_here:
            return None
        token = self._journal.leases.claim_planning(run_id, owner=self._owner, lease_s=LEASE_S)
        if token is not None:
            self._planned_here.add(run_id)
        return token

    def _plan(self, context: RunContext, lease: HeldLease) -> None:
        def stopping() -> bool:
            return lease.lost or self._stopping.is_set()

        STEPS.time("planning", lambda: advance_planning(context, lease.token, stopping))

    def _finish(self, context: RunContext, lease: HeldLease) -> None:
        outcome = take_finish(context, lease.token)
        if isinstance(outcome, After):
            self._finish_at[context.run_id] = self._clock() + outcome.seconds

    def _release(self, claim: Claim, outcome: Outcome | None) -> None:
        give_back(self._journal, claim, outcome, now=self._clock())

    def _rest(self, runs: Sequence[RunRecord]) -> None:
        """Sleeps until a step is due or a thread of this process has ended one."""
        now = self._clock()
        due = [next_due(self._journal, run) for run in runs]
        earliest = min((moment for moment in due if moment is not None), default=now + IDLE_S)
        # A batch that is due but held back must not make this a busy loop.
        self._wake.wait(min(IDLE_S, max(0.05, earliest - now)))
