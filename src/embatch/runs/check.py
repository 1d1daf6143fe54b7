"""Is an output whole and sound: its parts, its counts, and what the journal knows of it."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embatch.datasets.columnar import open_parquet
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths, read_failures
from embatch.datasets.parts import UNIT_TOLERANCE, mapped_matrix
from embatch.datasets.published import list_parts
from embatch.datasets.sorted_runs import MEMORY_BYTES, DigestRuns, digest_records, text_digests
from embatch.datasets.verify import VerifyReport, verify_parts
from embatch.journal.store import Journal
from embatch.runs.outputs import load_manifest, output_files
from embatch.storage.places import Place
from embatch.types.embedding import Space
from embatch.types.results import Matrix
from embatch.types.state import BatchState

BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What checking an output found."""

    out: str
    run_id: str
    finished: bool
    """False while the run goes on: what is published so far was checked."""
    files: int
    rows: int
    """Rows that have a vector."""
    failed: int
    """Rows that failures.jsonl names."""
    problem_count: int
    problems: tuple[str, ...]
    """One sentence each, the first hundred at most."""

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return self.problem_count == 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**asdict(self), "sound": self.sound}


def check_output(paths: OutputPaths, journal: Journal) -> Verdict:
    """Reads all of an output, in constant memory: each file, keys, vectors and counts.

    NotFoundError when it is no output. What is wrong with it is in the verdict.
    """
    manifest = load_manifest(paths)
    finished = manifest.finished_at is not None
    with tempfile.TemporaryDirectory(prefix="embatch-verify-") as scratch:
        report = _check_files(paths, manifest, Path(scratch) / "sort")
    failed = sum(1 for _ in read_failures(paths.failures))
    problems = list(report.problems)
    if finished:
        problems += _count_problems(manifest, report.rows, failed)
    problems += _journal_problems(journal, manifest, report, failed)
    return Verdict(
        out=str(paths.out),
        run_id=manifest.run_id,
        finished=finished,
        files=report.parts,
        rows=report.rows,
        failed=failed,
        problem_count=report.problem_count + len(problems) - len(report.problems),
        problems=tuple(problems),
    )


def _check_files(paths: OutputPaths, manifest: Manifest, work: Path) -> VerifyReport:
    space = manifest.space
    whole = manifest.finished_at is not None
    if whole and paths.single_file is not None and not paths.single_file.exists():
        return _report(1, 0, [f"{paths.single_file.name}: the file is missing"])
    if whole and paths.single_file is not None and paths.keys_file is not None:
        problems = list(_check_matrix(paths.single_file, paths.keys_file, space, work))
        rows = 0
        if not problems:
            with mapped_matrix(paths.single_file) as matrix:
                rows = len(matrix)
        return _report(1, rows, problems)
    listed = manifest.parts if whole and paths.single_file is None else None
    # What lies among the parts of a finished output and does not count is told, too.
    every = whole and paths.single_file is None
    files = list_parts(paths.parts) if every else output_files(paths)
    return verify_parts(
        files,
        dims=space.dims,
        normalized=space.normalized,
        expected=listed,
        work=work,
    )


def _report(parts: int, rows: int, problems: list[str]) -> VerifyReport:
    return VerifyReport(
        parts=parts,
        rows=rows,
        problem_count=len(problems),
        problems=tuple(problems),
        reports=(),
    )


def _check_matrix(file: Place, keys_file: Place, space: Space, work: Path) -> Iterator[str]:
    """The problems of an `.npy` file and of the keys beside it."""
    if not keys_file.exists():
        yield f"{keys_file.name}: the file is missing"
        return
    with ExitStack() as stack:
        try:
            matrix = stack.enter_context(mapped_matrix(file))
        except (OSError, ValueError):
            yield f"{file.name}: it cannot be read as a matrix"
            return
        yield from _check_rows(file.name, matrix, keys_file, space, work)


def _check_rows(
    name: str, matrix: Matrix, keys_file: Place, space: Space, work: Path
) -> Iterator[str]:
    if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != space.dims:
        yield f"{name}: {matrix.dtype} of shape {matrix.shape}, not float32 [n, {space.dims}]"
        return
    for start in range(0, len(matrix), BLOCK_ROWS):
        yield from _check_vectors(name, matrix[start : start + BLOCK_ROWS], start, space)
    yield from _check_keys(keys_file, len(matrix), work)


def _check_vectors(name: str, block: Matrix, start: int, space: Space) -> Iterator[str]:
    squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)
    finite = np.isfinite(squares)
    long = finite & (np.abs(np.sqrt(np.where(finite, squares, 1.0)) - 1.0) > UNIT_TOLERANCE)
    wrong: list[tuple[str, NDArray[np.bool_]]] = [("is not finite", ~finite)]
    if space.normalized:
        wrong.append(("is not of length 1", long))
    for words, where in wrong:
        if where.any():
            place = start + int(np.flatnonzero(where)[0])
            yield f"{name}: vector {place} {words} ({int(where.sum())} such in its block)"


def _check_keys(keys_file: Place, expected: int, work: Path) -> Iterator[str]:
    work.mkdir(parents=True)
    with ExitStack() as stack:
        keys = DigestRuns.create(work, "keys", MEMORY_BYTES)
        stack.callback(keys.delete)
        count, last = 0, -1
        with open_parquet(keys_file) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=["key", "row"]):
                rows = batch.column("row").to_numpy()
                keys.add(digest_records(text_digests(batch.column("key")), rows))
                if (np.diff(rows, prepend=last) <= 0).any():
                    yield f"{keys_file.name}: the row numbers do not ascend"
                count, last = count + len(rows), int(rows[-1])
        keys.flush()
        for found in keys.repeated():
            for row, first in zip(found["row"].tolist(), found["owner_row"].tolist(), strict=True):
                yield f"{keys_file.name}: rows {first} and {row} bear the same key"
    if count != expected:
        yield f"{keys_file.name}: {count} keys for {expected} vectors"


def _count_problems(manifest: Manifest, rows: int, failed: int) -> list[str]:
    counts = manifest.counts
    found = []
    if rows != counts["written"]:
        found.append(f"{rows} rows have a vector, and the manifest counts {counts['written']}")
    if failed != counts["failed"]:
        found.append(
            f"failures.jsonl has {failed} rows, and the manifest counts {counts['failed']}"
        )
    if counts["written"] + counts["failed"] != counts["rows"]:
        found.append(
            f"{counts['written']} written and {counts['failed']} failed rows "
            f"are not the {counts['rows']} of the input"
        )
    return found


def _journal_problems(
    journal: Journal, manifest: Manifest, report: VerifyReport, failed: int
) -> list[str]:
    """Where the journal says otherwise; nothing when it does not know the run."""
    run = journal.find_run(manifest.run_id)
    if run is None:
        return []
    if manifest.finished_at is None:
        there = {part.name: part.sha256 for part in report.reports}
        return [
            f"{batch.part}: the journal holds it published, and it is "
            + ("not the file that was written" if batch.part in there else "missing")
            for batch in journal.batches.walk(run.id, states=[BatchState.PUBLISHED])
            if there.get(str(batch.part)) != batch.part_sha256
        ]
    counts = journal.batches.counts(run.id)
    found = []
    if counts.written != report.rows:
        found.append(f"{report.rows} rows have a vector, and the journal counts {counts.written}")
    if counts.failed != failed:
        found.append(f"failures.jsonl has {failed} rows, and the journal counts {counts.failed}")
    return found
