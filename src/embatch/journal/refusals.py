"""What a database's errors mean to the journal's callers: it is away, is busy, or refuses."""

import re
import sqlite3
import time
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from embatch.errors import JournalError

CONFLICT_ATTEMPTS: Final = 8
"""Times that a transaction is tried which met others in its way."""
_CONFLICTS: Final = frozenset({"40001", "40P01"})
"""serialization_failure, deadlock_detected: the same transaction succeeds when tried again."""
_AWAY: Final = ("08", "57P", "53300", "55P03", "57014", "25P03", *_CONFLICTS)
"""SQLSTATEs begin so while the server is away, stopping, starting, full or busy."""
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_REFUSED: Final = re.compile(
    r"authentication|password|does not exist|pg_hba|not permitted|permission denied|certificate"
    r"|invalid connection option|invalid port|is not currently accepting"
    r"|invalid value for parameter|unrecognized configuration parameter",
    re.IGNORECASE,
)
"""libpq gives a refused connection no SQLSTATE: its words alone tell it from a server away."""

P = ParamSpec("P")
T = TypeVar("T")


def is_transient(error: DBAPIError | PoolTimeoutError) -> bool:
    """The same call may succeed later, with nothing changed but the database's condition."""
    if isinstance(error, PoolTimeoutError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _BUSY
    state = _sqlstate(error)
    if state is not None:
        return state.startswith(_AWAY)
    away = type(error.orig).__name__ in ("OperationalError", "ConnectionTimeout", "InterfaceError")
    return error.connection_invalidated or (away and not _REFUSED.search(str(error.orig)))


def is_refused(words: str) -> bool:
    """What libpq says of a connection is a refusal, and no server that is away."""
    return _REFUSED.search(words) is not None


def is_conflict(error: JournalError) -> bool:
    """Two transactions were in one another's way, and this one was undone."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and _sqlstate(cause) in _CONFLICTS


def reason(error: DBAPIError | PoolTimeoutError) -> str:
    """What the database said, without the rows that it may quote."""
    if isinstance(error, PoolTimeoutError):
        return "every connection of this process is in use"
    diagnosis = getattr(error.orig, "diag", None)
    said = getattr(diagnosis, "message_primary", None) or str(error.orig)
    return " ".join(str(said).split())


def repeated(method: Callable[P, T]) -> Callable[P, T]:
    """Has a method that is one transaction tried again when others were in its way."""

    @wraps(method)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(1, CONFLICT_ATTEMPTS):
            try:
                return method(*args, **kwargs)
            except JournalError as error:
                if not is_conflict(error):
                    raise
                time.sleep(0.002 * attempt)
        return method(*args, **kwargs)

    return tried


def _sqlstate(error: DBAPIError) -> str | None:
    found = getattr(error.orig, "sqlstate", None)
    return found if isinstance(found, str) else None
