"""Works runs in this process: a few threads that take whatever step is due."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from embatch.errors import EmbatchError, JournalError, LeaseLostError, TransitionRefusedError
from embatch.journal.leases import Claim
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.process import is_known_dead, owner_identity
from embatch.runs.advance import advance
from embatch.runs.context import RunContext
from embatch.runs.finish import fail_run, finish_run
from embatch.runs.outcomes import After, Done, Now, Outcome, Stuck
from embatch.runs.planning import advance_planning
from embatch.types.state import RunState

log = logging.getLogger("embatch.execution")

LEASE_S = 60.0
"""A step that is silent for so long is taken over by others."""
IDLE_S = 0.5
"""Longest sleep of a thread with nothing to do: other processes may have made work."""
WORKING_STATES = (RunState.PLANNING, RunState.RUNNING)


class ThreadExecutor:
    """Steps through runs until they are finished or `stop` is called."""

    def __init__(
        self,
        journal: Journal,
        open_context: Callable[[RunRecord], RunContext],
        *,
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
        self._contexts: dict[str, RunContext] = {}
        self._unworkable: set[str] = set()
        self._opening = threading.Lock()
        self._held: set[str] = set()
        self._holding = threading.Lock()
        self._wake = threading.Condition()
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Asks the threads to end after their present step. Safe in a signal handler's thread."""
        self._stopping.set()

    def work(
        self,
        run_ids: Sequence[str] | None = None,
        *,
        until: Callable[[], bool],
        poll_s: float = 0.1,
    ) -> None:
        """Takes steps of `run_ids`, or of every run, until `until()` holds or `stop` is called.

        `until` is asked every `poll_s` seconds, in the calling thread. An error that belongs to
        no run, such as a journal that is gone, is raised here.
        """
        self._journal.leases.release_dead(is_known_dead)
        threads = [
            threading.Thread(target=self._loop, args=(run_ids,), name=f"embatch-step-{n}")
            for n in range(self._threads)
        ]
        keeper = threading.Thread(target=self._keep_leases, name="embatch-leases")
        for thread in (keeper, *threads):
            thread.start()
        try:
            while not self._stopping.is_set() and not until():
                self._stopping.wait(poll_s)
        finally:
            self._stopping.set()
            with self._wake:
                self._wake.notify_all()
            for thread in threads:
                thread.join()
            self._idle.set()
            keeper.join()
        if self._failure is not None:
            raise self._failure

    def _loop(self, run_ids: Sequence[str] | None) -> None:
        try:
            while not self._stopping.is_set():
                if not self._step(run_ids):
                    self._rest(run_ids)
        except BaseException as error:  # noqa: BLE001 - a thread's outer edge: `work` raises it
            self._failure = error
            self._stopping.set()

    def _runs(self, run_ids: Sequence[str] | None) -> list[RunRecord]:
        runs = self._journal.list_runs(states=WORKING_STATES)
        wanted = [run for run in runs if run_ids is None or run.id in run_ids]
        return sorted(wanted, key=lambda run: (-run.priority, run.created_at))

    def _step(self, run_ids: Sequence[str] | None) -> bool:
        """Takes one step of some run. False when none is due."""
        for run in self._runs(run_ids):
            context = self._context(run, alone=run_ids is not None)
            if context is None:
                continue
            try:
                if self._step_of(run, context):
                    return True
            except (LeaseLostError, TransitionRefusedError):
                log.info("run %s: another process took over a step", run.id)
                return True
            except JournalError:
                raise  # says nothing about the run
            except (EmbatchError, OSError) as error:
                code = type(error).__name__ if isinstance(error, EmbatchError) else "StorageError"
                fail_run(self._journal, run.id, str(error), code=code, now=self._clock())
                return True
            except Exception as error:  # noqa: BLE001 - a step's outer edge: it is recorded
                # Where, not what: the message of a foreign error may hold a user's text.
                place = traceback.extract_tb(error.__traceback__)[-1]
                what = f"unexpected {type(error).__name__} at {place.name}:{place.lineno}"
                log.error("run %s: a step broke: %s", run.id, what)
                fail_run(self._journal, run.id, what, now=self._clock())
                return True
        return False

    def _step_of(self, run: RunRecord, context: RunContext) -> bool:
        if run.state is RunState.PLANNING and self._plan(run, context):
            return True
        if self._planning_only:
            return False
        claim = self._journal.leases.claim_step(
            run.id,
            owner=self._owner,
            lease_s=LEASE_S,
            now=self._clock(),
            max_in_flight=context.provider.limits.max_in_flight_batches,
        )
        if claim is not None:
            self._advance(claim, context)
            return True
        return run.state is RunState.RUNNING and self._finish(run, context)

    def _plan(self, run: RunRecord, context: RunContext) -> bool:
        with self._planning_lease(run.id) as token:
            if token is None:
                return False
            advance_planning(context, token, self._stopping.is_set)
            return True

    def _finish(self, run: RunRecord, context: RunContext) -> bool:
        if self._journal.leases.next_due(run.id) is not None:
            return False
        with self._planning_lease(run.id) as token:
            if token is None or context.run().state is not RunState.RUNNING:
                return False
            finish_run(context, token)
            return True

    def _advance(self, claim: Claim, context: RunContext) -> None:
        with self._hold(claim.token):
            try:
                outcome = advance(claim, context)
            except BaseException:
                self._release(claim, After(seconds=IDLE_S))
                raise
        if isinstance(outcome, Stuck):
            fail_run(self._journal, claim.batch.run_id, outcome.error, now=self._clock())
        self._release(claim, outcome)
        with self._wake:
            self._wake.notify_all()

    def _release(self, claim: Claim, outcome: Outcome) -> None:
        now = self._clock()
        leases = self._journal.leases
        match outcome:
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
            case Now() | Done():
                leases.release(claim.batch.id, claim.token, next_at=now)

    def _rest(self, run_ids: Sequence[str] | None) -> None:
        now = self._clock()
        due = [self._journal.leases.next_due(run.id) for run in self._runs(run_ids)]
        earliest = min((moment for moment in due if moment is not None), default=now + IDLE_S)
        with self._wake:
            # A batch that is due but leased or held back must not make this a busy loop.
            self._wake.wait(min(IDLE_S, max(0.02, earliest - now)))

    @contextmanager
    def _planning_lease(self, run_id: str) -> Iterator[str | None]:
        token = self._journal.leases.claim_planning(run_id, owner=self._owner, lease_s=LEASE_S)
        if token is None:
            yield None
            return
        try:
            with self._hold(token):
                yield token
        finally:
            self._journal.leases.release_planning(run_id, token)

    @contextmanager
    def _hold(self, token: str) -> Iterator[None]:
        with self._holding:
            self._held.add(token)
        try:
            yield
        finally:
            with self._holding:
                self._held.discard(token)

    def _keep_leases(self) -> None:
        while not self._idle.wait(LEASE_S / 4):
            with self._holding:
                held = set(self._held)
            for token in held:
                try:
                    self._journal.leases.renew([token], lease_s=LEASE_S)
                except LeaseLostError:
                    with self._holding:
                        ended = token not in self._held
                    if not ended:
                        # The step is refused when it journals; nothing is written twice.
                        log.warning("a lease was lost while its step ran")
                except EmbatchError as error:
                    log.warning("leases could not be renewed: %s", error)

    def _context(self, run: RunRecord, *, alone: bool) -> RunContext | None:
        """The run's world; None if this process cannot work it, which says nothing of others.

        Raises instead when the run was asked for by name.
        """
        with self._opening:
            if run.id in self._unworkable:
                return None
            if run.id not in self._contexts:
                try:
                    self._contexts[run.id] = self._open_context(run)
                except EmbatchError as error:
                    if alone:
                        raise
                    self._unworkable.add(run.id)
                    log.warning("run %s is left to other processes: %s", run.id, error)
                    return None
            return self._contexts[run.id]
