"""Builds a journal of 1,000 runs, 100,000 batches and 1 million events, as months of work leave it.

One run has a tenth of all batches; some are under way, one waits for a person, most have ended.
"""

import json
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embatch.journal.store import Journal
from embatch.runs.config import RunConfig
from embatch.types.embedding import Space

ITEMS: Final = 500
"""Rows of each batch."""
OPEN_RUNS: Final = 12
"""Runs that have not ended, the newest."""
CHUNK: Final = 20_000
_PATH: Final = (
    ("upload_started", "planned", "uploading"),
    ("upload_finished", "uploading", "uploaded"),
    ("submit_intended", "uploaded", "submitting"),
    ("submit_confirmed", "submitting", "submitted"),
    ("results_ready", "submitted", "ready"),
    ("collected", "ready", "collected"),
    ("published", "collected", "published"),
)
_NOTES: Final = 4
"""Events of each finished batch that change no state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a journal."""

    runs: int = 1_000
    batches: int = 100_000
    largest: int = 10_000
    """Batches of the largest run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a journal holds, and where to look."""

    runs: int
    batches: int
    events: int
    largest: str
    """Id of the largest run."""
    open: str
    """Id of a run under way."""


Rows = dict[str, list[dict[str, Any]]]


def build(url: str, size: Size, *, seed: int = 7) -> Built:
    """Fills the journal at `url`, which is made anew and must be empty."""
    journal = Journal.open(url)
    try:
        write = _sqlite_writer(url) if url.startswith("sqlite") else _postgres_writer(url)
        counts = {"runs": 0, "batches": 0, "events": 0}
        names: list[str] = []
        for rows in _made(size, random.Random(seed), journal.id):
            write(rows)
            for table in counts:
                counts[table] += len(rows.get(table, ()))
            names += [run["id"] for run in rows.get("runs", ())]
        write(None)
    finally:
        journal.close()
    return Built(largest=names[-OPEN_RUNS], open=names[-1], **counts)


def _made(size: Size, chance: random.Random, journal_id: str) -> Iterator[Rows]:
    """The rows of every table, run by run, the oldest run first."""
    now = time.time()
    usual = (size.batches - size.largest) // (size.runs - 1)
    batch_id = event_id = 0
    for number in range(size.runs):
        left = size.runs - number
        batches = size.largest if left == OPEN_RUNS else usual
        age = left * 7_200.0 if left > OPEN_RUNS else 3_600.0 + left * 240.0
        run = _Run(number, batches, now - age, left, chance, journal_id, now)
        rows, batch_id, event_id = run.rows(batch_id, event_id)
        yield rows


class _Run:
    """One run with all that belongs to it."""

    def __init__(
        self,
        number: int,
        batches: int,
        begun: float,
        left: int,
        chance: random.Random,
        journal_id: str,
        now: float,
    ) -> None:
        self.id = f"r{number:09d}"
        self.number, self.batches, self.begun = number, batches, begun
        self.open = left <= OPEN_RUNS
        self.needs_person = left == 2
        self.chance, self.journal_id, self.now = chance, journal_id, now
        self.width = 3_000.0 / batches

    def rows(self, batch_id: int, event_id: int) -> tuple[Rows, int, int]:
        made: Rows = {name: [] for name in ("runs", "batches", "events", "failures")}
        made |= {"jobs": [], "ledger": []}
        made["runs"].append(self._run())
        done = int(self.batches * (0.7 if self.open else 1.0))
        for number in range(self.batches):
            batch_id += 1
            passed = len(_PATH) if number < done else (4 if number < done + 40 else 0)
            at = self.begun + number * self.width
            made["batches"].append(self._batch(batch_id, number, passed, at))
            event_id = self._events(made["events"], event_id, batch_id, passed, at)
            if passed:
                label = self._label(number)
                made["jobs"].append(self._job(label, batch_id, passed, at))
                made["ledger"].append(self._line(label, batch_id, passed, at))
        if self.number % 10 == 0:
            made["failures"] = [self._failure(row, batch_id) for row in range(40)]
        return made, batch_id, event_id

    def _label(self, number: int) -> str:
        return f"embatch:{self.journal_id}:{self.id}:{number}:1:{number:08x}"

    def _run(self) -> dict[str, Any]:
        config = RunConfig(inputs=("/data/texts.parquet",), out=f"/data/out-{self.number}")
        model = "gemini-embedding-001"
        config_json = config.to_json() | {"provider": "gemini", "model": model}
        state = "running" if self.open else "completed"
        if not self.open and self.number % 10 == 0:
            state = "completed_with_failures"
        ended = None if self.open else self.begun + 3_100.0
        return {
            "id": self.id,
            "name": f"catalogue {self.number}",
            "state": state,
            "out": config.out,
            "config": json.dumps(config_json),
            "space": json.dumps(Space(provider="gemini", model=model, dims=768).to_json()),
            "tags": json.dumps({"team": f"t{self.number % 7}", "month": str(self.number % 12)}),
            "priority": 0,
            "plan": json.dumps({}),
            "rows": self.batches * ITEMS,
            "created_at": self.begun,
            "updated_at": ended or self.now,
            "started_at": self.begun,
            "finished_at": ended,
            "twins": 0,
        }

    def _batch(self, batch_id: int, number: int, passed: int, at: float) -> dict[str, Any]:
        published, sent = passed == len(_PATH), passed > 0
        person = self.needs_person and passed == 4 and number % 20 == 0
        return {
            "id": batch_id,
            "run_id": self.id,
            "number": number,
            "kind": "embed",
            "parent_id": None,
            "state": _PATH[passed - 1][2] if passed else "planned",
            "attempt": 1 if sent else 0,
            "items": ITEMS,
            "tokens_estimated": ITEMS * 120,
            "tokens_bound": ITEMS * 400,
            "item_bound": 2048,
            "bought": 0,
            "text_bytes": ITEMS * 500,
            "row_min": number * ITEMS,
            "row_max": (number + 1) * ITEMS - 1,
            "label": self._label(number) if sent else None,
            "remote_name": f"batches/{batch_id:x}" if sent else None,
            "succeeded": ITEMS if published else 0,
            "failed": 0,
            "tokens": ITEMS * 118 if published else 0,
            "truncated": 0,
            "repeated": 0,
            "part": f"part-{number:05d}.parquet" if published else None,
            "part_rows": ITEMS if published else None,
            "part_bytes": ITEMS * 3_100 if published else None,
            "part_row_min": number * ITEMS if published else None,
            "part_row_max": (number + 1) * ITEMS - 1 if published else None,
            "blocked_reason": "person" if person else None,
            "blocked_detail": f"batch {number}: nobody knows its job" if person else None,
            "next_at": at + 600.0 if published else self.now + self.chance.uniform(1.0, 60.0),
            "polls": 0,
            "absences": 0,
            "created_at": self.begun,
            "updated_at": at,
            "submitted_at": at + 2.0 if sent else None,
            "finished_at": at + 600.0 if published else None,
            "audited": 8 if published else None,
        }

    def _events(
        self, into: list[dict[str, Any]], event_id: int, batch_id: int, passed: int, at: float
    ) -> int:
        steps = list(_PATH[:passed])
        if passed == len(_PATH):
            steps[4:4] = [("looked", "", "")] * _NOTES
        for place, (kind, source, target) in enumerate(steps):
            event_id += 1
            into.append(
                {
                    "id": event_id,
                    "run_id": self.id,
                    "batch_id": batch_id,
                    "at": at + place * 60.0,
                    "kind": kind,
                    "source": source or None,
                    "target": target or None,
                    "data": json.dumps({"succeeded": ITEMS}),
                }
            )
        return event_id

    def _job(self, label: str, batch_id: int, passed: int, at: float) -> dict[str, Any]:
        ended = passed == len(_PATH)
        return {
            "label": label,
            "run_id": self.id,
            "batch_id": batch_id,
            "attempt": 1,
            "scope": "gemini/k3/gemini-embedding-001",
            "items": ITEMS,
            "tokens": ITEMS * 120,
            "state": "ended" if ended else "running",
            "occupies": not ended,
            "remote_name": f"batches/{batch_id:x}",
            "intended_at": at + 1.0,
            "ended_at": at + 580.0 if ended else None,
        }

    def _line(self, label: str, batch_id: int, passed: int, at: float) -> dict[str, Any]:
        ended = passed == len(_PATH)
        return {
            "ref": label,
            "run_id": self.id,
            "batch_id": batch_id,
            "kind": "batch",
            "state": "settled" if ended else "reserved",
            "rows": ITEMS,
            "rows_failed": 0,
            "rows_again": 0,
            "tokens_bound": ITEMS * 400,
            "tokens_estimated": ITEMS * 120,
            "tokens": ITEMS * 118 if ended else None,
            "usd_bound": ITEMS * 400 * 0.075e-6,
            "usd": ITEMS * 118 * 0.075e-6 if ended else None,
            "estimated": False,
            "at": at,
            "settled_at": at + 590.0 if ended else None,
        }

    def _failure(self, row: int, batch_id: int) -> dict[str, Any]:
        return {
            "run_id": self.id,
            "row": row,
            "key": f"doc-{row}-{secrets.token_hex(4)}",
            "code": "empty_text" if row % 2 else "too_long",
            "message": "the row cannot be embedded",
            "attempts": 1,
            "batch_id": batch_id,
            "kept": True,
        }


def _sqlite_writer(url: str) -> Any:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("PRAGMA synchronous=OFF")

    def write(rows: Rows | None) -> None:
        if rows is None:
            connection.execute("ANALYZE")
            connection.commit()
            connection.close()
            return
        for table, entries in rows.items():
            if entries:
                names = list(entries[0])
                marks = ", ".join("?" * len(names))
                columns = ", ".join(f'"{name}"' for name in names)
                values = [tuple(entry[name] for name in names) for entry in entries]
                connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)

    return write


def _postgres_writer(url: str) -> Any:
    import psycopg

    connection = psycopg.connect(url)

    def write(rows: Rows | None) -> None:
        if rows is None:
            for table in ("events", "batches"):
                connection.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
                )
            connection.commit()
            connection.autocommit = True
            connection.execute("VACUUM ANALYZE")  # as autovacuum has done in a journal in use
            connection.close()
            return
        for table, entries in rows.items():
            if entries:
                _copy(connection, table, list(entries[0]), entries)

    return write


def _copy(connection: Any, table: str, names: Sequence[str], entries: Sequence[Any]) -> None:
    columns = ", ".join(f'"{name}"' for name in names)
    with connection.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as into:
        for entry in entries:
            into.write_row([entry[name] for name in names])
