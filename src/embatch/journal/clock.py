"""The time that all machines of a PostgreSQL journal share: that of the database."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from embatch.errors import JournalError
from embatch.journal.database import Database

log = logging.getLogger("embatch.journal")

RENEW_S: Final = 30.0
"""Seconds after which the database is asked again; in between a counter of this machine runs on."""
TRY_AGAIN_S: Final = 5.0
"""Seconds until it is asked again where it did not answer."""
_COUNTER: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Counts while the machine sleeps, and does not hear of a changed clock."""


@dataclass(frozen=True, slots=True)
class _Measured:
    at: float
    """What the counter showed, in seconds, …"""
    now: float
    """… when it was so many seconds since 1970 at the database."""


class DatabaseClock:
    """Tells the database's time, in seconds since 1970. Safe in threads."""

    def __init__(self, database: Database) -> None:
        """Asks the database, which must answer; JournalError otherwise."""
        self._database = database
        self._measured = self._measure()
        self._renew_at = self._measured.at + RENEW_S
        self._renewing = threading.Lock()

    def __call__(self) -> float:
        """The time now. While the database is away, the counter alone tells it."""
        counted = _count()
        if counted >= self._renew_at and self._renewing.acquire(blocking=False):
            try:
                self._renew_at = counted + TRY_AGAIN_S
                self._measured = self._measure()
                self._renew_at = self._measured.at + RENEW_S
            except JournalError as error:
                log.debug("the database does not tell the time: %s", error)
            finally:
                self._renewing.release()
        measured = self._measured
        return measured.now + (_count() - measured.at)

    def _measure(self) -> _Measured:
        with self._database.read() as connection:
            before = _count()
            now = self._database.lease_now(connection)
            after = _count()
        return _Measured(at=(before + after) / 2, now=now)


def _count() -> float:
    return time.clock_gettime(_COUNTER)
