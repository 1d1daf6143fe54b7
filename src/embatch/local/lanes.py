"""Threads that take work by urgency: a query does not wait for the slice of a batch."""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from embatch.errors import InvalidRequestError

_URGENT: Final = 0
_USUAL: Final = 1
_END: Final = 2


class Lanes:
    """A few threads, one piece of work each at a time; among equals the oldest goes first."""

    def __init__(self, count: int) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]]
        self._queue = queue.PriorityQueue()
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"embatch-engine-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None], *, urgent: bool = False) -> Future[None]:
        """Has a thread do `work`. Raises `InvalidRequestError` once the lanes are closed."""
        future: Future[None] = Future()

        def settle() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)
            else:
                future.set_result(None)

        with self._lock:
            if self._closed:
                raise InvalidRequestError("the engine is closed: open another one")
            self._queue.put((_URGENT if urgent else _USUAL, next(self._order), settle))
        return future

    def close(self) -> None:
        """Ends the threads once all that was submitted is done. Safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put((_END, next(self._order), None))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (settle := self._queue.get()[2]) is not None:
            settle()
