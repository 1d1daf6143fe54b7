"""The thread that writes the outputs of ended batches; only then do callers see the end."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from embatch.errors import (
    BatchFailedError,
    EmbatchError,
    InputError,
    NotFoundError,
)
from embatch.server.details import BatchDetails
from embatch.server.outputs import OutputWriter, StoppedError
from embatch.server.weather import Results, Weather
from embatch.service.batch import StoredBatch
from embatch.service.claims import may_pass
from embatch.service.store import BatchStore

POLL_S: Final = 0.05
"""How often unfinished batches are looked at: one read of the database."""
RETRY_S: Final = 2.0
"""Pause of a batch after the first trouble with it, twice as long after each more."""
MOST_RETRY_S: Final = 30.0
TRIES: Final = 5
"""So often an output is tried that fails for no reason which may pass."""
TURN_BYTES: Final = 16 << 20
"""So much of one output is written before it is looked again which is the most urgent."""
_PAGE: Final = 1000


_log = logging.getLogger("embatch.server")


@dataclass(slots=True)
class _Trouble:
    """What keeps a batch from being written."""

    reason: str
    passes: bool
    """It is the disk's or the system's, not the batch's own."""
    until: float
    """When to try again, by the monotonic clock."""
    tries: int
    """Of those that failed by the batch's own fault."""
    pause_s: float


@dataclass(frozen=True, slots=True)
class _Writing:
    """An output that is written in turns."""

    batch: StoredBatch
    results: Results
    output: OutputWriter


class Finisher:
    """Ends batches for their callers. Knows which batches have not ended, so it counts them too.

    What a killed server left unwritten is found at the start and written.
    """

    def __init__(
        self,
        store: BatchStore,
        weather: Weather,
        *,
        checkpoint: Callable[[str], None] = lambda _: None,
        retry_s: float = RETRY_S,
    ) -> None:
        """Reads from `store` which batches are open."""
        self._retry_s = retry_s
        self._troubles: dict[str, _Trouble] = {}
        self._writing: dict[str, _Writing] = {}
        self._store = store
        self._weather = weather
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._open = self._find_open()
        self._reserved = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embatch-finisher", daemon=True)
        self.paused_reason: str | None = None
        """What keeps it from working until it goes away, such as a full disk."""

    def _find_open(self) -> dict[str, str]:
        """Labels of the batches that have not ended for their callers, with their models' keys."""
        found: dict[str, str] = {}
        before: int | None = None
        while page := self._store.page(before_seq=before, limit=_PAGE):
            for batch in page:
                if BatchDetails.parse(batch.details).output is None:
                    found[batch.label] = batch.model
            before = page[-1].seq
        return found

    @property
    def alive(self) -> bool:
        """Its thread runs."""
        return self._thread.is_alive()

    def open_models(self) -> list[str]:
        """Model keys of the open batches."""
        with self._lock:
            return list(self._open.values())

    def open_batches(self) -> list[StoredBatch]:
        """The open batches, oldest first."""
        with self._lock:
            labels = list(self._open)
        return self._store.find_all(labels)

    def reserve(self, most: int) -> bool:
        """Takes a place among `most` open batches, for one that is about to be made."""
        with self._lock:
            if len(self._open) + self._reserved >= most:
                return False
            self._reserved += 1
            return True

    def give_back(self) -> None:
        """Gives up a place whose batch was not made."""
        with self._lock:
            self._reserved -= 1

    def add(self, batch: StoredBatch) -> None:
        """Fills a reserved place with its batch."""
        with self._lock:
            self._reserved -= 1
            self._open[batch.label] = batch.model
        self._wake.set()

    def forget(self, label: str) -> None:
        """A batch was deleted."""
        with self._lock:
            self._open.pop(label, None)
        self._weather.forget(label)

    def start(self) -> None:
        """Begins to work, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; an output that is half written is written anew at the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        """The thread: whatever happens to one batch, it goes on with the next."""
        try:
            self._work()
        finally:
            for label in list(self._writing):
                self._let_go(label)

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            with self._lock:
                labels = list(self._open)
            if not labels and not self._writing:
                self._wake.wait()
                continue
            try:
                self.paused_reason = self._look_at(labels)
            except StoppedError:
                return
            except Exception as error:  # noqa: BLE001 - the thread's outer edge: kept for health
                self.paused_reason = _reason(error)
                self._stopping.wait(self._retry_s)
            if not self._writing:
                self._stopping.wait(POLL_S)

    def _look_at(self, labels: list[str]) -> str | None:
        """Ends those batches that can be ended; what may pass and keeps another one from it."""
        batches = self._store.find_all(labels)
        found = {batch.label for batch in batches}
        for label in set(labels) - found:
            self.forget(label)  # deleted before it was added
        for label in self._writing.keys() - found:
            gone = self._writing[label].batch
            self._let_go(label)
            self._store.clear(gone.id)
        self._troubles = {label: one for label, one in self._troubles.items() if label in found}
        now = time.monotonic()
        for batch in sorted(batches, key=_turn):
            trouble = self._troubles.get(batch.label)
            if (trouble is None or trouble.until <= now) and self._try(batch):
                break
        return next((one.reason for one in self._troubles.values() if one.passes), None)

    def _try(self, batch: StoredBatch) -> bool:
        """Does what is to be done for a batch; True when a turn was written and more is to come."""
        try:
            if batch.done and not self._weather.holds(batch):
                self._finish(batch)
            elif not batch.done and self._weather.suffices(batch):
                self._store.cancel(batch.id)
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - one batch must not hold up the others
            self._pause(batch, error)
        else:
            self._troubles.pop(batch.label, None)
        return batch.label in self._writing

    def _pause(self, batch: StoredBatch, error: Exception) -> None:
        """Leaves a batch alone for a while; fails it when its own trouble has not gone away."""
        reason, passes = _reason(error), may_pass(error)
        before = self._troubles.get(batch.label)
        if before is None or before.reason != reason:
            _log.error("the output of a batch cannot be written", exc_info=error)
        pause_s = self._retry_s if before is None else min(MOST_RETRY_S, 2 * before.pause_s)
        tries = (0 if before is None else before.tries) + (not passes)
        until = time.monotonic() + pause_s
        self._troubles[batch.label] = _Trouble(reason, passes, until, tries, pause_s)
        if tries < TRIES or not batch.done:
            return
        details = BatchDetails.parse(batch.details)
        try:
            self._record(batch, replace(details, output=False, error=_LOST))
        except EmbatchError:
            return  # the store cannot be used now: this is tried again
        self.forget(batch.label)

    def _finish(self, batch: StoredBatch) -> None:
        """Takes a turn at a batch's output; the batch ends when it is whole."""
        details = BatchDetails.parse(batch.details)
        if details.output is None:
            ended: BatchDetails | None = details
            try:
                ended = self._written(batch, details)
            except (NotFoundError, FileNotFoundError):
                if self._store.find(batch.label) is not None:
                    ended = replace(details, output=False, error=_LOST)
            if ended is None:
                return
            self._record(batch, ended)
        self.forget(batch.label)

    def _written(self, batch: StoredBatch, details: BatchDetails) -> BatchDetails | None:
        """The details with what became of the output; None when more is to be written."""
        more = False
        try:
            writing = self._writing.get(batch.label) or self._begin(batch)
            if writing is None:
                return replace(details, output=False)
            more = not writing.output.write(TURN_BYTES)
        except (InputError, BatchFailedError, pa.ArrowInvalid):
            return replace(details, output=False, error=_LOST)
        finally:
            if not more:
                self._let_go(batch.label)
        if more:
            return None
        self._checkpoint("serve.written")
        return replace(details, output=True, plan=writing.results.plan() or details.plan)

    def _begin(self, batch: StoredBatch) -> _Writing | None:
        results = self._weather.results(self._store, batch, self._stopping.is_set)
        if results is None:
            return None
        output = OutputWriter(self._store.folder(batch.id), batch, results.lines)
        self._writing[batch.label] = _Writing(batch, results, output)
        return self._writing[batch.label]

    def _let_go(self, label: str) -> None:
        """Closes an output; what is half written is removed."""
        writing = self._writing.pop(label, None)
        if writing is not None:
            writing.output.close()

    def _record(self, batch: StoredBatch, details: BatchDetails) -> None:
        def change(stored: str) -> str:
            newest = BatchDetails.parse(stored)
            return replace(
                newest, output=details.output, error=details.error, plan=details.plan
            ).build()

        try:
            self._store.change_details(batch.id, change)
        except NotFoundError:
            self._store.clear(batch.id)  # deleted while its output was written


def _turn(batch: StoredBatch) -> tuple[bool, int, int, int]:
    """Sorts the output that is written next before others: urgent, then small ones."""
    return batch.done, -batch.priority, batch.rows_done, batch.seq


_LOST: Final = "The server's files of this batch are gone or damaged: submit it again."


def _reason(error: Exception) -> str:
    if isinstance(error, EmbatchError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"the disk refused: {error.strerror}"
    return f"unexpected {type(error).__name__}"
