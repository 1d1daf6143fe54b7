"""What the fake cloud keeps: documents in SQLite and bytes in files, alive after kill -9."""

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

Doc = dict[str, Any]
"""A document: plain JSON values."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS docs (
    kind TEXT NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS billed (
    digest BLOB NOT NULL, model TEXT NOT NULL, batch INTEGER NOT NULL, interactive INTEGER NOT NULL,
    PRIMARY KEY (digest, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    what TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (what, name)
) WITHOUT ROWID;
"""


class Store:
    """Documents by kind and name, counters, and a folder for bytes. Safe to call from threads."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for name in ("uploads", "files", "jobs", "objects"):
            (folder / name).mkdir(exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        self._database = sqlite3.connect(
            folder / "cloud.db", check_same_thread=False, isolation_level=None
        )
        # A killed process loses nothing that the kernel holds; a power cut may lose a test.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)
        (last,) = self._database.execute("SELECT coalesce(max(seq), 0) FROM docs").fetchone()
        self._seq = int(last)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All writes inside happen together or not at all; others wait."""
        with self._lock:
            if self._depth == 0:
                self._database.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._database
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._database.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._database.execute("COMMIT")

    def put(self, kind: str, name: str, body: Doc) -> None:
        """Writes a document; a new one gets the next sequence number under "seq"."""
        with self.transaction() as database:
            if "seq" not in body:
                self._seq += 1
                body["seq"] = self._seq
            database.execute(
                "INSERT OR REPLACE INTO docs VALUES (?, ?, ?, ?)",
                (kind, name, body["seq"], orjson.dumps(body)),
            )

    def get(self, kind: str, name: str) -> Doc | None:
        """The document, or None."""
        with self._lock:
            row = self._database.execute(
                "SELECT body FROM docs WHERE kind = ? AND name = ?", (kind, name)
            ).fetchone()
        return None if row is None else orjson.loads(row[0])

    def delete(self, kind: str, name: str) -> bool:
        """Removes the document; False when there was none."""
        with self.transaction() as database:
            found = database.execute(
                "DELETE FROM docs WHERE kind = ? AND name = ?", (kind, name)
            ).rowcount
        return bool(found)

    def all(self, kind: str) -> list[Doc]:
        """Every document of a kind, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT body FROM docs WHERE kind = ? ORDER BY seq", (kind,)
            ).fetchall()
        return [orjson.loads(body) for (body,) in rows]

    def count(self, what: str, name: str, by: int = 1) -> None:
        """Adds to a counter."""
        with self.transaction() as database:
            database.execute(
                "INSERT INTO counts VALUES (?, ?, ?)"
                " ON CONFLICT (what, name) DO UPDATE SET n = n + excluded.n",
                (what, name, by),
            )

    def next_number(self, what: str) -> int:
        """A running number from 1 for names of one sort."""
        with self.transaction():
            self.count("number", what)
            return self.count_of("number", what)

    def counts(self, what: str) -> dict[str, int]:
        """All counters of one sort."""
        with self._lock:
            rows = self._database.execute(
                "SELECT name, n FROM counts WHERE what = ? ORDER BY name", (what,)
            ).fetchall()
        return {str(name): int(n) for name, n in rows}

    def count_of(self, what: str, name: str) -> int:
        """One counter."""
        rows = self.query("SELECT n FROM counts WHERE what = ? AND name = ?", (what, name))
        return int(rows[0][0]) if rows else 0

    def query(self, sql: str, arguments: tuple[object, ...] = ()) -> list[Any]:
        """Rows of a SELECT."""
        with self._lock:
            return self._database.execute(sql, arguments).fetchall()

    def new_path(self, folder: str) -> Path:
        """A fresh file name in one of the byte folders."""
        return self.folder / folder / secrets.token_hex(12)

    def close(self) -> None:
        """Closes the database; the files stay."""
        with self._lock:
            self._database.close()
