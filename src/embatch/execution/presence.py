"""This process in the list of those that take steps: it says every few seconds that it lives."""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from embatch.errors import JournalError
from embatch.journal.workers import Doing, Trouble, WorkerTable

log = logging.getLogger("embatch.execution")

BEAT_S: Final = 5.0
"""Seconds between two signs of life."""


class Presence:
    """One process's line in the journal's list of workers. Trouble with it stops no work."""

    def __init__(
        self,
        workers: WorkerTable,
        *,
        execution: str,
        concurrency: int,
        queues: Sequence[str] = (),
        troubles: Callable[[], Sequence[Trouble]] = tuple,
        clock: Callable[[], float] = time.time,
        beat_s: float = BEAT_S,
    ) -> None:
        """`troubles` tells what the process cannot work."""
        self._workers = workers
        self._execution = execution
        self._concurrency = concurrency
        self._queues = queues
        self._troubles = troubles
        self._clock = clock
        self._beat_s = beat_s
        self._id: str | None = None
        self._steps = 0
        self._doing: dict[int, Doing] = {}
        self._numbers = itertools.count()
        self._counting = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embatch-presence")

    @contextmanager
    def at(self, run_id: str, step: str, batch: int | None = None) -> Iterator[None]:
        """While the block runs, the process is at work on this."""
        doing = Doing(run_id=run_id, batch=batch, step=step, since=self._clock())
        with self._counting:
            number = next(self._numbers)
            self._doing[number] = doing
        try:
            yield
        finally:
            with self._counting:
                del self._doing[number]
                self._steps += 1

    def start(self) -> None:
        """Enters the process in the list, and begins to beat."""
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Says goodbye."""
        self._ended.set()
        self._thread.join()
        if self._id is not None:
            try:
                self._workers.leave(self._id, steps=self._steps)
            except JournalError as error:
                log.info("the journal does not hear that this process ends: %s", error)

    def beat(self) -> None:
        """One sign of life."""
        with self._counting:
            doing, steps = list(self._doing.values()), self._steps
        try:
            if self._id is None or not self._workers.beat(
                self._id, steps=steps, doing=doing, troubles=self._troubles()
            ):
                self._id = self._workers.register(
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=_version(),
                    execution=self._execution,
                    queues=self._queues,
                    concurrency=self._concurrency,
                )
        except JournalError as error:
            log.info("the journal does not hear that this process lives: %s", error)

    def _run(self) -> None:
        while not self._ended.wait(self._beat_s):
            self.beat()


def _version() -> str:
    try:
        return version("embatch")
    except PackageNotFoundError:  # a source tree that is not installed
        return "unknown"
