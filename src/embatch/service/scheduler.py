"""Who computes what next: a few threads that take batches slice by slice, by priority."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from embatch.errors import (
    BatchFailedError,
    EmbatchError,
    LeaseLostError,
    ProviderUnavailableError,
)
from embatch.service.batch import StoredBatch
from embatch.service.claims import Claim, claim_next, is_outranked, may_pass
from embatch.service.files import SliceResult
from embatch.service.slices import embed_slice, next_slice_items
from embatch.service.store import BatchStore
from embatch.types.results import Embedded, TextEngine

SLICE_ITEMS: Final = 4096
"""Rows of a slice at most, a quarter more at a batch's end, however short the texts are."""
FIRST_SLICE_ITEMS: Final = 256
"""Rows of the first slice, while nobody knows how fast the engine is."""
SLICE_S: Final = 4.0
"""Seconds that a slice should take: what an urgent batch waits for at most, about."""
WORKERS: Final = 2
"""Batches under way at once: one keeps the engine busy while a slice of the other ends."""
IDLE_POLL_S: Final = 0.5
"""How often an idle scheduler looks for batches that another process made or left."""
RETRY_S: Final = 2.0
"""Pause after the disk or the database refused."""
GIVE_WAY_S: Final = 5.0
"""How long a slice waits for interactive calls to end, so that a flood of them starves no batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the scheduler does, asked from the worker itself."""

    alive: bool
    """Its threads run."""
    current_batches: tuple[str, ...]
    """Ids of the batches it works on."""
    last_progress_at: datetime | None
    """When it last committed a slice."""
    paused_reason: str | None
    """What keeps it from working until it goes away, such as a full disk."""


@dataclass(slots=True)
class _Underway:
    """A batch in hand."""

    priority: int
    begun: float
    """When its slice was begun, by the scheduler's clock."""
    last_slice: bool = False
    """Its slice in hand ends it: another batch may begin."""
    rows_per_s: float = 0.0
    """Of its last slice."""


class Scheduler:
    """Computes the batches of a store with the engines it is given. Start it, wake it, stop it.

    Schedulers of several processes may share a store: a batch is computed by one at a time.
    """

    def __init__(
        self,
        store: BatchStore,
        engine_for: Callable[[str], TextEngine],
        *,
        models: Collection[str] | None = None,
        slice_items: int = SLICE_ITEMS,
        slice_s: float | None = SLICE_S,
        workers: int = WORKERS,
        idle_poll_s: float = IDLE_POLL_S,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engine_for` gives the engine of a batch's `model`, from any thread; it keeps it open.

        `models` limits the batches taken to those models. A slice has `slice_items` rows at most
        and, with `slice_s`, as many as take about that many seconds; None keeps them at the most.
        `workers` is how many batches may be under way at once.
        """
        self._store = store
        self._engine_for = engine_for
        self._models = models
        self._largest = slice_items
        self._slice_items = slice_items if slice_s is None else min(slice_items, FIRST_SLICE_ITEMS)
        self._slice_s = slice_s
        self._idle_poll_s = idle_poll_s
        self._retry_s = retry_s
        self._clock = clock
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._sweeping = threading.Lock()
        self._choosing = threading.Lock()
        self._swept = False
        self._gate = threading.Condition()
        self._calls_to_wake = 0
        self._interactive = 0
        self._current: dict[str, _Underway] = {}
        self._last_progress_at: datetime | None = None
        self._paused: dict[int, str] = {}

    def start(self) -> None:
        """Begins to work, in threads of its own. Does nothing when it runs already."""
        with self._starting:
            if self._threads:
                return
            self._threads = [
                threading.Thread(target=self._run, name=f"embatch-scheduler-{n}", daemon=True)
                for n in range(self._workers)
            ]
            for thread in self._threads:
                thread.start()

    def wake(self) -> None:
        """Makes an idle scheduler look for work now."""
        with self._gate:
            self._calls_to_wake += 1
            self._gate.notify_all()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Ends the work after the slices in hand. False when that took longer than `timeout_s`."""
        self._stopping.set()
        self.wake()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def health(self) -> Health:
        """How it does, now."""
        return Health(
            alive=bool(self._threads) and all(thread.is_alive() for thread in self._threads),
            current_batches=tuple(self._current),
            last_progress_at=self._last_progress_at,
            paused_reason=next(iter(tuple(self._paused.values())), None),
        )

    def embed_now(
        self, model: str, texts: Sequence[str], *, prompt: str = "", dims: int | None = None
    ) -> Embedded:
        """Embeds a few texts in the caller's thread, ahead of all slices not yet begun."""
        engine = self._engine_for(model)
        with self._ahead_of_slices():
            return engine.embed(texts, prompt=prompt, dims=dims, urgent=True)

    def remaining_s(self, batch: StoredBatch) -> float | None:
        """Seconds until a batch under way should end, by its last slice; None: nobody can know.

        Negative when it takes longer than it should.
        """
        underway = self._current.get(batch.id)
        if underway is None or underway.rows_per_s == 0.0:
            return None
        left = (batch.items - batch.rows_done) / underway.rows_per_s
        return left - (self._clock() - underway.begun)

    @contextmanager
    def _ahead_of_slices(self) -> Iterator[None]:
        with self._gate:
            self._interactive += 1
        try:
            yield
        finally:
            with self._gate:
                self._interactive -= 1
                self._gate.notify_all()

    def _give_way(self) -> None:
        with self._gate:
            self._gate.wait_for(
                lambda: self._interactive == 0 or self._stopping.is_set(), GIVE_WAY_S
            )

    def _run(self) -> None:
        """A thread. Whatever happens to a batch or the disk, it goes on with what is next."""
        while not self._stopping.is_set():
            calls = self._calls_to_wake
            try:
                self._sweep()
                claim = self._choose()
                if claim is not None:
                    self._work(claim)
            except Exception as error:  # noqa: BLE001 - the thread's outer edge: kept in health()
                self._pause(error)
                continue
            self._paused.pop(threading.get_ident(), None)
            if claim is None:
                self._rest(calls)

    def _choose(self) -> Claim | None:
        """The next batch, known to the other workers from the moment it is claimed."""
        with self._choosing:
            claim = claim_next(
                self._store,
                slice_items=self._slice_items,
                models=self._models,
                at_least=self._lowest_priority(),
            )
            if claim is not None:
                self._current[claim.batch.id] = _Underway(claim.batch.priority, self._clock())
            return claim

    def _rest(self, calls: int) -> None:
        """Sleeps until the next look is due or somebody wakes the scheduler."""
        with self._gate:
            self._gate.wait_for(
                lambda: self._calls_to_wake != calls or self._stopping.is_set(), self._idle_poll_s
            )

    def _lowest_priority(self) -> int | None:
        """A batch of lower priority waits while one with more to come is in hand; None: none."""
        held = [one.priority for one in tuple(self._current.values()) if not one.last_slice]
        return max(held, default=None)

    def _sweep(self) -> None:
        with self._sweeping:
            if not self._swept:
                self._store.sweep()
                self._swept = True

    def _work(self, claim: Claim) -> None:
        """Computes a batch until it ends or gives way. Raises only what is not its fault."""
        with closing(claim), suppress(LeaseLostError):  # lost: cancelled or deleted, all is said
            try:
                self._compute(claim, self._engine(claim.batch.model))
            except Exception as error:  # recorded in the batch
                if may_pass(error):
                    with suppress(EmbatchError, OSError):
                        claim.release()  # computed, not kept: nobody died over it
                    raise
                claim.fail(_reason(error))
            finally:
                del self._current[claim.batch.id]

    def _engine(self, model: str) -> TextEngine:
        try:
            return self._engine_for(model)
        except Exception as error:
            raise BatchFailedError(f"the model cannot be loaded: {_reason(error)}") from error

    def _compute(self, claim: Claim, engine: TextEngine) -> None:
        while True:
            self._give_way()
            if self._stopping.is_set():
                break
            batch, rows = claim.batch, claim.slice_items
            underway = self._current[batch.id]
            underway.begun = self._clock()
            underway.priority = batch.priority
            underway.last_slice = batch.rows_done + rows == batch.items
            if underway.last_slice:
                self.wake()
            part = embed_slice(engine, claim.texts(), prompt=batch.prompt, dims=batch.dims)
            elapsed_s = self._clock() - underway.begun
            self._adapt(rows, elapsed_s)
            underway.rows_per_s = rows / elapsed_s if elapsed_s > 0 else 0.0
            self._commit(claim, part)
            if claim.batch.done:
                return
            if self._is_outranked(claim.batch):
                break
        claim.release()

    def _is_outranked(self, batch: StoredBatch) -> bool:
        with self._choosing:
            lowest = self._lowest_priority()
            if lowest is not None and lowest > batch.priority:
                return True
            return is_outranked(self._store, batch.priority, models=self._models)

    def _adapt(self, rows: int, elapsed_s: float) -> None:
        if self._slice_s is not None:
            self._slice_items = next_slice_items(
                self._slice_items, rows, elapsed_s, target_s=self._slice_s, largest=self._largest
            )

    def _commit(self, claim: Claim, part: SliceResult) -> None:
        """Keeps a computed slice in hand until the disk takes it."""
        while True:
            try:
                claim.commit(part, next_items=self._slice_items)
            except (ProviderUnavailableError, OSError) as error:
                if not may_pass(error) or not self._pause(error):
                    raise
            else:
                self._paused.pop(threading.get_ident(), None)
                self._last_progress_at = claim.batch.updated_at
                return

    def _pause(self, error: Exception) -> bool:
        """Waits before the next try, the reason in `health()`. False when it is time to stop."""
        self._paused[threading.get_ident()] = _reason(error)
        return not self._stopping.wait(self._retry_s)


def _reason(error: Exception) -> str:
    """What to tell people about `error`. Foreign messages may quote users' texts: not kept."""
    if isinstance(error, EmbatchError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"the disk refused: {error.strerror}"
    return f"unexpected {type(error).__name__}"
