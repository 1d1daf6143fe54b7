"""From the journal's URL to a pool of connections, with what both databases are told at first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from embatch.errors import ConfigError

BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for another process's transaction."""
_POSTGRES: Final = ("postgresql", "postgres", "postgresql+psycopg")
_SERVER_SETTINGS: Final = {
    "lock_timeout": f"{BUSY_TIMEOUT_S:.0f}s",
    # A machine that vanished within a transaction must not hold up the others for hours.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_CLIENT_SETTINGS: Final[Mapping[str, Any]] = {
    "application_name": "embatch",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""libpq's own parameters; those that the URL gives stand."""
_SHOWN: Final = frozenset({"host", "hostaddr", "port", "dbname", "user"})
"""Parameters of a URL's query that hold no secret."""
POOL_SIZE: Final = 4
MOST_CONNECTIONS: Final = 64
"""Of one process. A connection serves one transaction of one thread at a time."""


def open_engine(url: str) -> Engine:
    """A pool for the database at `url`. Raises ConfigError for one that cannot be used.

    Nothing is connected yet.
    """
    parsed = parse_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed)
        return _postgres(parsed)
    except ImportError as error:
        raise ConfigError(
            "a journal on PostgreSQL needs psycopg: pip install 'embatch[postgres]'"
        ) from error
    except OSError as error:
        raise ConfigError(f"the journal's folder cannot be made: {error}") from error


def parse_url(url: str) -> URL:
    """The journal's URL, its driver named. Raises ConfigError, which quotes nothing of it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The error's own text may quote a piece of a password that is not quoted rightly.
        raise ConfigError(
            "the journal's URL is not usable: give a file name, sqlite:///… or "
            "postgresql://user:password@host:port/database, with / : @ % in the password as "
            "%2F %3A %40 %25"
        ) from None
    if parsed.drivername in _POSTGRES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return parsed
    raise ConfigError(
        f"the journal's URL is not usable: no journal is kept with {parsed.drivername!r}; give a "
        "file name, sqlite:///… or postgresql://…"
    )


def shown_url(url: URL) -> str:
    """The URL as messages may show it: no password, wherever it stands."""
    open_ones = {name: value for name, value in url.query.items() if name in _SHOWN}
    return url.set(query=open_ones).render_as_string(hide_password=True)


def _sqlite(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def network_settings(given: Mapping[str, str]) -> dict[str, Any]:
    """libpq's parameters of every connection to a journal, beside those that its URL gives."""
    settings = " ".join(f"-c {name}={value}" for name, value in _SERVER_SETTINGS.items())
    defaults = {name: value for name, value in _CLIENT_SETTINGS.items() if name not in given}
    return {**defaults, "options": f"{settings} {given.get('options', '')}".strip()}


def _postgres(url: URL) -> Engine:
    given = {
        name: value if isinstance(value, str) else " ".join(value)
        for name, value in url.query.items()
    }
    return create_engine(
        url,
        connect_args=network_settings(given),
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=MOST_CONNECTIONS - POOL_SIZE,
    )


def _set_pragmas(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: _begin decides which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what is journaled may have cost money
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("embatch_write", False)
    # A deferred transaction that turns into a writer fails at once when another one writes.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
