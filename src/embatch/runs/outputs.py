"""Reads what a run wrote: as blocks, as search hits, and as a verdict on its soundness."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from embatch import vectors
from embatch.datasets.columnar import open_parquet
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.parts import mapped_matrix, read_part
from embatch.datasets.published import list_parts, published_parts
from embatch.errors import InvalidRequestError, NotFoundError, StorageError
from embatch.storage.places import Place
from embatch.types.results import Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A row found by search."""

    score: float
    """Cosine with the query, -1..1."""
    key: str
    row: int
    kept: dict[str, Any]
    """The kept columns."""


def load_manifest(paths: OutputPaths) -> Manifest:
    """The manifest of an output; NotFoundError when there is none."""
    if not paths.manifest.exists():
        raise NotFoundError(f"{paths.out} is no output of a run: it has no {paths.manifest.name}")
    manifest = Manifest.load(paths.manifest)
    require_form(paths, manifest)
    return manifest


def require_form(paths: OutputPaths, manifest: Manifest) -> None:
    """Raises InvalidRequestError when the manifest is that of another output beside this one.

    `x.parquet`, `x.npy` and the folder `x.embatch` would share a folder.
    """
    if manifest.form not in ("", paths.form):
        raise InvalidRequestError(
            f"{paths.out} and {paths.sibling(manifest.form)} would share the folder "
            f"{paths.parts.name}, which belongs to the latter: name that one, or give this output "
            "another name"
        )


def require_whole(paths: OutputPaths, manifest: Manifest) -> None:
    """Raises StorageError when files are gone that an output had when it was finished."""
    if manifest.finished_at is None:
        return
    if paths.single_file is not None:
        files = [file for file in (paths.single_file, paths.keys_file) if file is not None]
        lacking = [file.name for file in files if not file.exists()]
    else:
        there = {part.name for part in list_parts(paths.parts)}
        lacking = [part.name for part in manifest.parts if part.name not in there]
    if lacking:
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise StorageError(
            f"{paths.out} was finished and lacks {lacking[0]}{others}: put that back, or use "
            "another output"
        )


def require_journal(paths: OutputPaths, manifest: Manifest, journal_id: str) -> None:
    """Raises InvalidRequestError when the output is another journal's by now."""
    if manifest.journal_id != journal_id:
        raise InvalidRequestError(
            f"{paths.out} belongs to another journal by now: name it with --journal"
        )


def require_owned(paths: OutputPaths, journal_id: str) -> None:
    """The same for an output in an object store, where no lock keeps other journals away."""
    if not isinstance(paths.manifest, Path):
        require_journal(paths, Manifest.load(paths.manifest), journal_id)


def output_files(paths: OutputPaths) -> list[Place]:
    """The Parquet files that hold the output's vectors now."""
    if paths.single_file is not None and paths.single_file.exists():
        if paths.single_file.suffix == ".npy":
            raise InvalidRequestError(
                f"{paths.single_file} is read with numpy.load; its keys stand in {paths.keys_file}"
            )
        return [paths.single_file]
    return parts_of(paths)


def parts_of(paths: OutputPaths) -> list[Place]:
    """The parts that count: of a finished output in an object store those of its manifest."""
    if not isinstance(paths.parts, Path):
        manifest = Manifest.load(paths.manifest)
        if manifest.finished_at is not None:
            return [paths.parts / part.name for part in manifest.parts]
    return published_parts(paths.parts)


def read_output(paths: OutputPaths) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
    """Rows written so far with their vectors `[n, dims]`, in the order of the parts."""
    load_manifest(paths)
    yield from _vectors(paths)


def search_output(paths: OutputPaths, query: Matrix, k: int) -> list[Hit]:
    """The `k` rows nearest to `query` `[1, d]` by cosine, best first, from one pass over all."""
    best: list[Hit] = []
    for batch, matrix in _vectors(paths):
        places, scores = vectors.top_k(matrix, query, k)
        hits = _hits(batch, places[0].tolist(), scores[0].tolist())
        best = sorted(best + hits, key=lambda hit: (-hit.score, hit.row))[:k]
    return best


def _vectors(paths: OutputPaths) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
    if paths.keys_file is not None and paths.single_file and paths.single_file.exists():
        with ExitStack() as stack:
            matrix = stack.enter_context(mapped_matrix(paths.single_file))
            keys = stack.enter_context(open_parquet(paths.keys_file))
            start = 0
            for batch in keys.iter_batches(8192):
                yield batch, matrix[start : start + batch.num_rows]
                start += batch.num_rows
        return
    for path in output_files(paths):
        yield from read_part(path)


def _hits(batch: pa.RecordBatch, places: Sequence[int], scores: Sequence[float]) -> list[Hit]:
    own = ("key", "row", "text_sha256", "embedding")
    kept = batch.select([name for name in batch.schema.names if name not in own])
    rows = kept.take(pa.array(places)).to_pylist() if kept.num_columns else [{}] * len(places)
    return [
        Hit(
            score=score,
            key=batch["key"][place].as_py(),
            row=batch["row"][place].as_py(),
            kept=values,
        )
        for place, score, values in zip(places, scores, rows, strict=True)
    ]
