"""Threads that take work by urgency: a query does not wait for the slice of a batch."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from embatch.errors import InvalidRequestError

URGENT_IN_A_ROW: Final = 3
"""Urgent pieces that may overtake a usual one, so that a flood of queries starves no batch."""


class Lanes:
    """A few threads, one piece of work each at a time; among equals the oldest goes first."""

    def __init__(self, count: int) -> None:
        # Each piece is a turn of the pool; which piece a turn takes is decided when it begins.
        self._turns = ThreadPoolExecutor(count, thread_name_prefix="embatch-engine")
        self._urgent: deque[Callable[[], None]] = deque()
        self._usual: deque[Callable[[], None]] = deque()
        self._overtaken = 0
        self._lock = threading.Lock()

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
            try:
                self._turns.submit(self._take)
            except RuntimeError:
                raise InvalidRequestError("the engine is closed: open another one") from None
            (self._urgent if urgent else self._usual).append(settle)
        return future

    def close(self) -> None:
        """Ends the threads once all that was submitted is done. Safe to call twice."""
        self._turns.shutdown()

    def _take(self) -> None:
        with self._lock:
            usual_next = self._overtaken == URGENT_IN_A_ROW or not self._urgent
            if self._usual and usual_next:
                settle, self._overtaken = self._usual.popleft(), 0
            else:
                settle = self._urgent.popleft()
                self._overtaken = self._overtaken + 1 if self._usual else 0
        settle()
