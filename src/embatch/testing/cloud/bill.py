"""The bill: what was embedded for money, by text, by job and by call."""

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from embatch.testing.cloud.store import Store

_DIGEST_BYTES: Final = 32
_SLICE_ROWS: Final = 2000
_PAUSE_S: Final = 0.001
"""Between slices, for those who wait for the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobBill:
    """What one job cost."""

    name: str
    display_name: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """All that was charged since the cloud began."""

    rows: int
    """Rows of batch jobs that got a vector."""
    tokens: int
    """Tokens of those rows, at the batch price."""
    interactive_rows: int
    interactive_tokens: int
    texts: int
    """Distinct texts (by SHA-256 and model) that batch jobs embedded."""
    rows_billed_twice: int
    """Batch rows beyond the first for the same text and model."""
    jobs: tuple[JobBill, ...]
    jobs_created: dict[str, int]
    """Jobs that came to be, by display name."""
    requests: dict[str, int]
    """Requests by route, refused and broken ones included."""
    refused: dict[str, int]
    """Answers of 400 and above by route."""

    @property
    def duplicate_jobs(self) -> dict[str, int]:
        """Display names under which more than one job was created."""
        return {name: n for name, n in self.jobs_created.items() if n > 1}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Bill":
        """The bill that `to_json` wrote."""
        jobs = tuple(JobBill(**job) for job in values["jobs"])
        return cls(**{**values, "jobs": jobs})


class Ledger:
    """Writes the bill into the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def charge_batch(self, job: str, model: str, digests: Path, stopping: threading.Event) -> None:
        """Charges a job's rows: `digests` holds the SHA-256 of their texts, one after another.

        It goes in slices, so that others are served meanwhile. A slice and how far the job is
        charged are one step: after a kill it goes on where it was.
        """
        with digests.open("rb", buffering=1 << 20) as file:
            file.seek(self._store.count_of("charged", job) * _DIGEST_BYTES)
            while piece := file.read(_SLICE_ROWS * _DIGEST_BYTES):
                ends = range(_DIGEST_BYTES, len(piece) + 1, _DIGEST_BYTES)
                with self._store.transaction():
                    slice_ = (piece[end - _DIGEST_BYTES : end] for end in ends)
                    self._charge(slice_, model, batch=1, interactive=0)
                    self._store.count("charged", job, len(ends))
                stopping.wait(_PAUSE_S)

    def charge_job(self, name: str, display_name: str, *, rows: int, tokens: int) -> None:
        """Closes a job's account."""
        job = JobBill(name=name, display_name=display_name, rows=rows, tokens=tokens)
        self._store.put("bill", name, asdict(job))

    def charge_interactive(self, digests: list[bytes], model: str, tokens: int) -> None:
        """Charges texts embedded at once, at the full price."""
        with self._store.transaction():
            self._charge(digests, model, batch=0, interactive=1)
            self._store.count("interactive", "rows", len(digests))
            self._store.count("interactive", "tokens", tokens)

    def _charge(
        self, digests: Iterable[bytes], model: str, *, batch: int, interactive: int
    ) -> None:
        with self._store.transaction() as database:
            database.executemany(
                "INSERT INTO billed VALUES (?, ?, ?, ?) ON CONFLICT (digest, model) DO UPDATE"
                " SET batch = batch + excluded.batch,"
                " interactive = interactive + excluded.interactive",
                ((digest, model, batch, interactive) for digest in digests),
            )

    def times_billed(self, digest: bytes, model: str | None = None) -> int:
        """Batch rows charged for a text's SHA-256, for one model or all."""
        (row,) = self._store.query(
            "SELECT coalesce(sum(batch), 0) FROM billed"
            " WHERE digest = ? AND (? IS NULL OR model = ?)",
            (digest, model, model),
        )
        return int(row[0])

    def rows_by_digest(self) -> dict[str, int]:
        """Batch rows charged by hex SHA-256 of the text, all models together."""
        rows = self._store.query("SELECT hex(digest), sum(batch) FROM billed GROUP BY digest")
        return {str(digest).lower(): int(n) for digest, n in rows if n}

    def bill(self) -> Bill:
        """The bill so far."""
        (texts, rows) = self._store.query(
            "SELECT count(*), coalesce(sum(batch), 0) FROM billed WHERE batch > 0"
        )[0]
        jobs = []
        for job in self._store.all("bill"):
            job.pop("seq")
            jobs.append(JobBill(**job))
        interactive = self._store.counts("interactive")
        return Bill(
            rows=int(rows),
            tokens=sum(job.tokens for job in jobs),
            interactive_rows=interactive.get("rows", 0),
            interactive_tokens=interactive.get("tokens", 0),
            texts=int(texts),
            rows_billed_twice=int(rows) - int(texts),
            jobs=tuple(jobs),
            jobs_created=self._store.counts("created"),
            requests=self._store.counts("request"),
            refused=self._store.counts("refused"),
        )
