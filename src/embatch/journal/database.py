"""Opens the journal's database: transactions, turns of writers, and the clock of leases."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from embatch.errors import JournalError
from embatch.journal.chronicle import open_lines, tell
from embatch.journal.connecting import open_engine, shown_url
from embatch.journal.refusals import is_transient, reason
from embatch.journal.revisions import SCHEMA_REVISION, find_revision, refuse_newer
from embatch.journal.schema import journal_table

__all__ = ["SCHEMA_REVISION", "Database"]

_TURN = text(
    "SELECT version_num FROM alembic_version, "
    "(SELECT pg_advisory_xact_lock(hashtextextended(:run_id, 1))) AS turn"
)
_VERSION = text("SELECT version_num FROM alembic_version")


class Database:
    """One SQLite file or PostgreSQL database, migrated to the newest schema."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looking = engine
        if engine.dialect.name == "postgresql":
            self._looking = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        with self.read() as connection:
            self.journal_id: str = connection.execute(select(journal_table.c.id)).scalar_one()

    @classmethod
    def open(cls, url: str) -> "Database":
        """Connects and migrates. Raises ConfigError for a bad URL, JournalError for a database
        that is away, refuses, or holds something else."""
        engine = open_engine(url)
        shown = shown_url(engine.url)
        try:
            with _translated(f"the journal {shown} cannot be opened", _ELSEWHERE):
                _migrate(engine, shown)
                return cls(engine)
        except BaseException:
            engine.dispose()
            raise

    @property
    def is_shared(self) -> bool:
        """Other machines may use it."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for looking: all that is read in it stood at one moment. Never waits."""
        with _translated("the journal refused"), self._looking.connect() as connection:
            yield connection

    @contextmanager
    def write(self, run_id: str | None = None) -> Iterator[Connection]:
        """One transaction, durable when the block ends.

        On SQLite writers take turns. On PostgreSQL those do that name the same `run_id`, which
        whoever decides by what it reads of a run must do; one that names none changes rows that
        it finds by their own guards. An error while the block ends leaves open whether it was
        kept: guarded changes tell when they are tried again.
        """
        with _translated("the journal refused"), self._engine.connect() as connection:
            options = connection.execution_options(embatch_write=True)
            transaction = options.begin()
            try:
                if run_id is not None:
                    self.take_turn(options, run_id)
                lines = open_lines(options)
                yield options
            except BaseException:
                # A connection that is gone has undone the transaction itself.
                if transaction.is_active:
                    transaction.rollback()
                raise
            with _translated("the journal did not say whether it kept the last change"):
                transaction.commit()
        tell(lines)

    def take_turn(self, connection: Connection, run_id: str) -> None:
        """Waits, in a transaction that did not name it at first, until no other writes the run."""
        if connection.dialect.name == "postgresql":
            found = connection.execute(_TURN, {"run_id": run_id}).scalar()
        else:
            found = connection.execute(_VERSION).scalar()
        refuse_newer(found)

    def lease_now(self, connection: Connection) -> float:
        """Now, by the clock that all holders of leases share."""
        if connection.dialect.name == "sqlite":
            return time.time()
        now: Any = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
        return float(now)

    def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._engine.dispose()


_ELSEWHERE = "; name another with --journal or EMBATCH_JOURNAL_URL"


@contextmanager
def _translated(what: str, advice: str = "") -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        refusal = JournalError(f"{what}: {reason(error)}{advice}")
        refusal.transient = is_transient(error)
        raise refusal from error


def _migrate(engine: Engine, shown: str) -> None:
    with engine.connect() as connection:
        found = find_revision(connection, shown)
    refuse_newer(found)
    if found == SCHEMA_REVISION:
        return
    from embatch.journal.migrations.upgrade import upgrade

    upgrade(engine)
