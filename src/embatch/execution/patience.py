"""What to do while the journal's database cannot be reached: wait, say so once, and go on."""

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from embatch.errors import JournalError

log = logging.getLogger("embatch.execution")

FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0

_Given = TypeVar("_Given")


class Patience:
    """Tries again what failed because the database was away, until it is back or `stopping` is set.

    Everything a step writes into the journal is guarded by state and lease, so it may be repeated.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._told = threading.Lock()
        self._away = False

    def ask(self, call: Callable[[], _Given]) -> _Given:
        """What `call` gives. Raises JournalError for a refusal, or when it is time to stop."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                given = call()
            except JournalError as error:
                if not self.bears(error) or self._stopping.wait(wait_s):
                    raise
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
                continue
            self.relax()
            return given

    def bears(self, error: JournalError) -> bool:
        """The database is away, and the error no refusal. Says so the first time."""
        if not error.transient:
            return False
        with self._told:
            if not self._away:
                self._away = True
                log.warning("the journal is away, and waited for: %s", error)
        return True

    def relax(self) -> None:
        """The database has answered."""
        if not self._away:
            return
        with self._told:
            if self._away:
                self._away = False
                log.warning("the journal is back")
