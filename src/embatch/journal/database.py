"""Opens the journal's database: pragmas, transactions, migrations, and the clock of leases."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from embatch.errors import ConfigError, JournalError
from embatch.journal.schema import journal_table

SCHEMA_REVISION = "0003"
"""The newest Alembic revision, the one that this code speaks."""
BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another process's transaction."""


class Database:
    """One SQLite file or PostgreSQL database, migrated to the newest schema."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with self.read() as connection:
            self.journal_id: str = connection.execute(select(journal_table.c.id)).scalar_one()

    @classmethod
    def open(cls, url: str) -> "Database":
        """Connects and migrates. Raises ConfigError for a bad URL, JournalError for a bad file."""
        engine = _create_engine(url)
        try:
            _migrate(engine)
            return cls(engine)
        except DatabaseError as error:
            raise JournalError(
                f"the journal {engine.url.render_as_string()} cannot be opened: {error.orig}; "
                "name another with --journal or EMBATCH_JOURNAL_URL"
            ) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for looking; takes no write lock."""
        with self._guard(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, durable when the block ends."""
        with self._guard(), self._engine.connect() as connection:
            options = connection.execution_options(embatch_write=True)
            with options.begin():
                yield options

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise JournalError(f"the journal refused: {error.orig}") from error

    def lease_now(self, connection: Connection) -> float:
        """Now, by the clock that all holders of leases share."""
        if connection.dialect.name == "sqlite":
            return time.time()
        now: Any = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
        return float(now)

    def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._engine.dispose()


def _create_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
            event.listen(engine, "connect", _set_pragmas)
            event.listen(engine, "begin", _begin)
            return engine
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"the journal's URL is not usable: {error}; give a file name, sqlite:///… or postgresql+psycopg://…"
        ) from error
    except OSError as error:
        raise ConfigError(f"the journal's folder cannot be made: {error}") from error


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


def _migrate(engine: Engine) -> None:
    found = _revision(engine)
    if found == SCHEMA_REVISION:
        return
    if found is not None and found > SCHEMA_REVISION:
        raise JournalError(
            f"the journal has schema {found}, this embatch knows {SCHEMA_REVISION}: update embatch"
        )
    from embatch.journal.migrations.upgrade import upgrade

    upgrade(engine)


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: Any = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)
