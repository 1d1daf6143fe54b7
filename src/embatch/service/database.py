"""The service's SQLite file, shared by threads and processes. Its errors become ours here."""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from embatch.errors import JournalError, ProviderUnavailableError

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for another one; each holds the file for some milliseconds."""

_SCHEMA: Final = """
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    label TEXT NOT NULL UNIQUE,
    details TEXT NOT NULL,
    model TEXT NOT NULL,
    dims INTEGER NOT NULL CHECK (dims > 0),
    prompt TEXT NOT NULL,
    priority INTEGER NOT NULL,
    items INTEGER NOT NULL CHECK (items > 0),
    state TEXT NOT NULL
        CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'expired')),
    waiting INTEGER GENERATED ALWAYS AS (state IN ('pending', 'processing')),
    rows_begun INTEGER NOT NULL DEFAULT 0,
    rows_done INTEGER NOT NULL DEFAULT 0 CHECK (rows_done BETWEEN 0 AND items),
    failed INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    items_redone INTEGER NOT NULL DEFAULT 0,
    claim TEXT,
    error TEXT,
    created_at REAL NOT NULL,
    started_at REAL,
    updated_at REAL NOT NULL,
    ended_at REAL,
    CHECK (state <> 'completed' OR rows_done = items)
);
CREATE INDEX batches_waiting ON batches (waiting, priority DESC, seq);
CREATE TABLE row_errors (
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    row INTEGER NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    transient INTEGER NOT NULL,
    PRIMARY KEY (batch_id, row)
) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""

Value = str | int | float | None
Values = Sequence[Value] | Mapping[str, Value]
"""What fills the places of a statement, by position or by name."""


class Database:
    """One connection in WAL mode, every commit flushed to the disk."""

    def __init__(self, path: Path, *, schema: str = _SCHEMA, version: int = SCHEMA_VERSION) -> None:
        """Opens the file, or makes it with the statements of `schema`, known by `version`."""
        self._path = path
        self._schema = schema
        self._version = version
        self._lock = threading.RLock()
        with self._translated():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        """Makes the schema; one process at a time, as SQLite does not wait for a change to WAL."""
        self._connection.row_factory = sqlite3.Row
        with self._path.with_suffix(".lock").open("w") as guard, self._translated():
            fcntl.flock(guard, fcntl.LOCK_EX)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE; {self._schema}"
                    f" PRAGMA user_version = {self._version}; COMMIT;"
                )
            elif version != self._version:
                raise JournalError(
                    f"{self._path} was written by another version of embatch (schema {version}, "
                    f"this one knows {self._version}): use that version, or another folder"
                )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else writes meanwhile."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Values = ()) -> list[sqlite3.Row]:
        """What a query gives, outside of any transaction."""
        with self._lock, self._translated():
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise ProviderUnavailableError(
                f"the batch store {self._path} cannot be used now ({error}): "
                "look for a full disk or a process that holds the file, then try again"
            ) from error
        except sqlite3.Error as error:
            raise JournalError(f"the batch store {self._path} is broken: {error}") from error
