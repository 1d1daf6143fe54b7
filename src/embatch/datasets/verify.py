"""Is an output whole: every part readable and unchanged, every key and row once."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.manifest import PartEntry
from embatch.datasets.parts import PartReport, check_part, reading_part
from embatch.datasets.sorted_runs import (
    MEMORY_BYTES,
    RECORD,
    DigestRuns,
    Records,
    digest_records,
    text_digests,
)
from embatch.storage.places import Place

MAX_PROBLEMS: Final = 100
"""Problems that are told one by one; the report counts them all."""
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it maps row numbers one to one onto evenly spread 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What verifying an output found."""

    parts: int
    rows: int
    problem_count: int
    problems: tuple[str, ...]
    """The first `MAX_PROBLEMS`, each naming part, and row and key where there is one."""
    reports: tuple[PartReport, ...]
    """One a part, in the order given."""

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return self.problem_count == 0


def verify_parts(
    parts: Sequence[Place],
    *,
    dims: int,
    normalized: bool,
    expected: Sequence[PartEntry] | None = None,
    work: Path,
    memory_bytes: int = MEMORY_BYTES,
) -> VerifyReport:
    """Reads all parts, in constant memory.

    `expected` is the manifest's list: parts that it lacks, parts that lack, and other content than
    it names are problems; None looks at the parts alone. Scratch files go to a folder of their own
    in `work`, removed at the end.
    """
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="verify-", dir=work) as scratch, ExitStack() as stack:
        reading = _Reading.begin(parts, Path(scratch), memory_bytes)
        stack.callback(reading.keys.delete)
        stack.callback(reading.rows.delete)
        for path in parts:
            reading.check(path, dims=dims, normalized=normalized)
        reading.compare(expected)
        reading.find_repeated()
        return reading.report()


@dataclass(slots=True)
class _Reading:
    """What is gathered while the parts are read; each row gets a number in the order of reading."""

    parts: Sequence[Place]
    keys: DigestRuns
    rows: DigestRuns
    starts: list[int]
    """Number of the first row of each part, and after the last part the count of all."""
    reports: list[PartReport]
    problems: list[str]
    problem_count: int = 0

    @classmethod
    def begin(cls, parts: Sequence[Place], work: Path, memory_bytes: int) -> "_Reading":
        return cls(
            parts=parts,
            keys=DigestRuns.create(work, "keys", memory_bytes // 2),
            rows=DigestRuns.create(work, "rows", memory_bytes // 2),
            starts=[0],
            reports=[],
            problems=[],
        )

    def add(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def check(self, path: Place, *, dims: int, normalized: bool) -> None:
        count = self.starts[-1]

        def visit(batch: pa.RecordBatch) -> None:
            nonlocal count
            numbers = np.arange(count, count + batch.num_rows)
            self.keys.add(digest_records(text_digests(batch.column("key")), numbers))
            self.rows.add(_row_records(batch.column("row").to_numpy(), numbers))
            count += batch.num_rows

        report = check_part(path, dims=dims, normalized=normalized, visit=visit)
        self.starts.append(count)
        self.reports.append(report)
        for problem in report.problems:
            self.add(problem)

    def compare(self, expected: Sequence[PartEntry] | None) -> None:
        if expected is None:
            return
        listed = {entry.name: entry for entry in expected}
        for report in self.reports:
            entry = listed.pop(report.name, None)
            if entry is None:
                self.add(f"{report.name}: the manifest does not list it")
            elif report.sha256 and report.sha256 != entry.sha256:
                self.add(f"{report.name}: its bytes are not those that were written (SHA-256)")
            elif not report.problems and report.rows != entry.rows:
                self.add(f"{report.name}: {report.rows} rows, not the manifest's {entry.rows}")
        for name in listed:
            self.add(f"{name}: the part is missing")

    def find_repeated(self) -> None:
        for runs, what in ((self.keys, "the key"), (self.rows, "the row")):
            runs.flush()
            for found in runs.repeated():
                for number, first in zip(
                    found["row"].tolist(), found["owner_row"].tolist(), strict=True
                ):
                    self._add_repeated(what, number, first)

    def _add_repeated(self, what: str, number: int, first: int) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            self.problem_count += 1
            return
        part, row, key = self._row(number)
        other, other_row, _ = self._row(first)
        self.add(f"{part}: row {row}, key {key!r}: {what} stands in {other}, row {other_row}, too")

    def _row(self, number: int) -> tuple[str, int, str]:
        """Part, row and key of the row that was read as `number`."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        within = number - self.starts[part]
        with reading_part(self.parts[part]) as file:
            for batch in file.iter_batches(columns=["key", "row"]):
                if within < batch.num_rows:
                    row = batch.slice(within, 1).to_pylist()[0]
                    return self.parts[part].name, row["row"], row["key"]
                within -= batch.num_rows
        return self.parts[part].name, -1, ""

    def report(self) -> VerifyReport:
        return VerifyReport(
            parts=len(self.parts),
            rows=self.starts[-1],
            problem_count=self.problem_count,
            problems=tuple(self.problems),
            reports=tuple(self.reports),
        )


def _row_records(rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Records:
    records = np.zeros(len(rows), dtype=RECORD)
    records["high"], records["row"] = rows.astype(np.uint64) * _SPREAD, numbers
    return records
