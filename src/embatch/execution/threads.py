"""Works runs in this process: a few threads that take whatever step is due."""

import logging
import math
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from embatch.errors import EmbatchError, JournalError, LeaseLostError, TransitionRefusedError
from embatch.execution.keeper import HeldLease, LeaseKeeper
from embatch.journal.leases import Claim
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.process import is_known_dead, owner_identity
from embatch.runs.accounts import stop_over_budget
from embatch.runs.admission import begin_ahead
from embatch.runs.advance import advance
from embatch.runs.config import RunConfig
from embatch.runs.context import RunContext
from embatch.runs.direct import is_late, missed_deadline
from embatch.runs.finish import fail_run, finish_run
from embatch.runs.outcomes import After, Done, Now, Outcome, OverBudget, Stuck
from embatch.runs.pace import RETRY_DELAY_S
from embatch.runs.parking import next_due, park, wake_parked
from embatch.runs.planning import advance_planning
from embatch.runs.trouble import call_person
from embatch.runs.twins import Lookout
from embatch.types.state import RunState

log = logging.getLogger("embatch.execution")

LEASE_S = 60.0
"""A step that is silent for so long is taken over by others."""
IDLE_S = 0.5
"""Longest sleep of a thread with nothing to do: other processes may have made work."""
UNWORKABLE_S = 30.0
"""A run that this process cannot work is looked at again after so long."""
WORKING_STATES = (RunState.PLANNING, RunState.RUNNING, RunState.PARKED)

_Work = Callable[[HeldLease], Outcome | None]
"""A step, to be taken while its lease is held."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A step that is due, with the lease under which it may be taken."""

    run: RunRecord
    token: str
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
        self._open_context = open_context
        self._clock = clock
        self._owner = owner_identity()
        self._threads = threads
        self._planning_only = planning_only
        self._close_context = close_context
        self._contexts: dict[str, RunContext] = {}
        self._unworkable: dict[str, float] = {}
        self._lookout = Lookout()
        self._hurried: set[str] = set()
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
        self._journal.leases.release_dead(is_known_dead)
        threads = [
            threading.Thread(target=self._loop, args=(run_ids,), name=f"embatch-step-{n}")
            for n in range(self._threads)
        ]
        self._keeper.start()
        for thread in threads:
            thread.start()
        try:
            ends_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
            while not self._stopping.is_set() and (left := ends_at - time.monotonic()) > 0:
                self._news.clear()
                if until():
                    break
                self._news.wait(min(poll_s, left))
        finally:
            self._stopping.set()
            self._wake.set()
            for thread in threads:
                thread.join()
            self._keeper.stop()
        if self._failure is not None:
            raise self._failure

    def _loop(self, run_ids: Sequence[str] | None) -> None:
        try:
            while not self._stopping.is_set():
                # One thread at a time looks for work, or sleeps until there is some.
                with self._looking:
                    found = self._next_step(run_ids)
                if found is not None:
                    self._take(found)
        except BaseException as error:  # noqa: BLE001 - a thread's outer edge: `work` raises it
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
                    context = self._context(run, alone=run_ids is not None)
                    if context is None:
                        continue
                    found = self._find(run, context)
                except JournalError:
                    raise  # says nothing about the run
                except Exception as error:  # noqa: BLE001 - it is recorded in the run
                    self._fail(run, error)
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
        for run_id in self._contexts.keys() - working:
            if not self._busy[run_id]:
                del self._contexts[run_id], self._busy[run_id]
                self._close_context(run_id)

    def _find(self, run: RunRecord, context: RunContext) -> _Found | None:
        watching = not self._planning_only and self._lookout.is_due(context)
        if watching and (token := self._lease_planning(run.id)):
            return self._planning_step(run, token, lambda _: self._lookout.look(context))
        free = len(self._planned_here) < max(1, self._threads - 1)  # one stays for batches
        planning = run.state is RunState.PLANNING and free
        if planning and (token := self._lease_planning(run.id)):
            return self._planning_step(run, token, partial(self._plan, context))
        if self._planning_only:
            return None
        leases, parked = self._journal.leases, run.state is RunState.PARKED
        if parked and wake_parked(self._journal, run, now=self._clock()):
            return None
        late = is_late(context)
        if late and run.id not in self._hurried:
            self._hurried.add(run.id)
            if (missed := missed_deadline(self._journal, run, now=self._clock())) is not None:
                log.warning("run %s: %s", run.id, missed)
            self._journal.quotas.wake(run.id, now=self._clock())
        claim = leases.claim_step(
            run.id,
            owner=self._owner,
            lease_s=LEASE_S,
            now=self._clock(),
            max_in_flight=sys.maxsize if late else context.provider.limits.max_in_flight_batches,
            max_ahead=None if late else begin_ahead(context),
            parked=parked and not late,
        )
        if claim is not None:
            work = partial(self._advance, claim, context)
            return _Found(run, claim.token, work, partial(self._release, claim))
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
        return self._planning_step(run, token, partial(self._finish, context))

    def _planning_step(self, run: RunRecord, token: str, work: _Work) -> _Found:
        def give_back(_: Outcome | None) -> None:
            self._journal.leases.release_planning(run.id, token)
            self._planned_here.discard(run.id)
            self._news.set()

        return _Found(run, token, work, give_back)

    def _take(self, found: _Found) -> None:
        """Takes a step. What it meets is written into its run, unless it says nothing of it."""
        outcome = None
        try:
            with self._keeper.hold(found.token) as lease:
                outcome = self._taken(found, lease)
        finally:
            found.give_back(outcome)
            self._count(found.run.id, -1)
            self._wake.set()

    def _taken(self, found: _Found, lease: HeldLease) -> Outcome | None:
        try:
            return found.work(lease)
        except (LeaseLostError, TransitionRefusedError):
            log.info("run %s: another process took over a step", found.run.id)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - a step's outer edge: it is recorded
            self._keeper.renew()
            if lease.is_held():
                self._fail(found.run, error)
        return None

    def _fail(self, run: RunRecord, error: Exception) -> None:
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
        fail_run(self._journal, run.id, what, code=code, now=self._clock())
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

        advance_planning(context, lease.token, stopping)

    def _finish(self, context: RunContext, lease: HeldLease) -> None:
        if context.run().state is RunState.RUNNING and not self._journal.leases.has_steps(
            context.run_id
        ):
            outcome = finish_run(context, lease.token)
            if isinstance(outcome, After):
                self._finish_at[context.run_id] = self._clock() + outcome.seconds

    def _advance(self, claim: Claim, context: RunContext, lease: HeldLease) -> Outcome:
        outcome = advance(claim, context, lease.is_held)
        if isinstance(outcome, Stuck):
            if outcome.hopeless or not context.provider.limits.billed:
                fail_run(self._journal, claim.batch.run_id, outcome.error, now=self._clock())
                self._news.set()
            else:
                log.warning("run %s waits for a person: %s", claim.batch.run_id, outcome.error)
        return outcome

    def _release(self, claim: Claim, outcome: Outcome | None) -> None:
        now = self._clock()
        leases = self._journal.leases
        match outcome:
            case None:
                leases.release(claim.batch.id, claim.token, next_at=now + IDLE_S)
            case After(seconds=seconds, reason=reason, detail=detail):
                leases.release(
                    claim.batch.id,
                    claim.token,
                    next_at=now + seconds,
                    blocked_reason=reason,
                    blocked_detail=detail,
                )
            case Stuck(error=error):
                leases.release(
                    claim.batch.id,
                    claim.token,
                    next_at=now,
                    blocked_reason="person",
                    blocked_detail=error,
                )
            case OverBudget(error=error):
                leases.release(
                    claim.batch.id,
                    claim.token,
                    next_at=now + RETRY_DELAY_S,
                    blocked_reason="budget",
                    blocked_detail=error,
                )
                if stop_over_budget(self._journal, claim.batch.run_id, error, now=now):
                    self._news.set()
            case Now() | Done():
                leases.release(claim.batch.id, claim.token, next_at=now)

    def _rest(self, runs: Sequence[RunRecord]) -> None:
        """Sleeps until a step is due or a thread of this process has ended one."""
        now = self._clock()
        due = [next_due(self._journal, run) for run in runs]
        earliest = min((moment for moment in due if moment is not None), default=now + IDLE_S)
        # A batch that is due but held back must not make this a busy loop.
        self._wake.wait(min(IDLE_S, max(0.05, earliest - now)))

    def _context(self, run: RunRecord, *, alone: bool) -> RunContext | None:
        """The run's world; None if this process cannot work it, which says nothing of others.

        Raises instead when the run was asked for by name.
        """
        now = self._clock()
        if self._unworkable.get(run.id, now) > now:
            return None
        context = self._contexts.get(run.id)
        if context is None or context.config != RunConfig.from_json(run.config):
            try:
                context = self._contexts[run.id] = self._open_context(run)
            except EmbatchError as error:
                if alone:
                    raise
                if run.id not in self._unworkable:
                    log.warning("run %s is left to other processes: %s", run.id, error)
                self._unworkable[run.id] = now + UNWORKABLE_S
                return None
        return context
