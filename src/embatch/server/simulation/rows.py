"""Rows of a computed batch in any order: what was asked, and what came of it."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.server.intake import DIMS_COLUMN, ECHO_COLUMN, EMPTY_COLUMN
from embatch.service.batch import StoredBatch
from embatch.service.files import FLOAT_BYTES, REQUESTS_FILE, RESULTS_FILE, ROW, TEXT_COLUMN
from embatch.service.store import BatchStore
from embatch.testing.cloud.spoil import RowAtHand
from embatch.types.embedding import RowError
from embatch.types.results import Matrix


@dataclass(slots=True)
class StoredRow:
    """One row."""

    at: RowAtHand
    """Its number; its text and that one's SHA-256 where texts are read."""
    echo: bytes
    """Members that come back with its result."""
    dims: int
    empty: bool
    tokens: int = 0
    truncated: bool = False
    error: RowError | None = None


class StoredRows:
    """The rows of one batch, on disk. Close it."""

    def __init__(self, store: BatchStore, batch: StoredBatch, *, texts: bool) -> None:
        """`texts` says whether texts are read too."""
        self._batch = batch
        folder = store.folder(batch.id)
        self._source = pa.memory_map(str(folder / REQUESTS_FILE))
        names = [ECHO_COLUMN, DIMS_COLUMN, EMPTY_COLUMN, *([TEXT_COLUMN] if texts else [])]
        schema = pa.ipc.open_file(self._source).schema
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(n) for n in names])
        self._reader = pa.ipc.open_file(self._source, options=options)
        counts = [
            self._reader.get_batch(n).num_rows for n in range(self._reader.num_record_batches)
        ]
        self._ends = np.cumsum(counts)
        self._errors: dict[int, RowError] = {}
        if batch.failed:
            for block in store.results(batch.id):
                self._errors.update(block.errors)
        self._vectors: Any = np.empty((0, batch.dims), dtype=np.float32)
        self._states: Any = np.empty(0, dtype=ROW)
        if batch.rows_done:
            path = folder / RESULTS_FILE
            shape = (batch.rows_done, batch.dims)
            rows_at = batch.items * batch.dims * FLOAT_BYTES
            self._vectors = np.memmap(path, dtype="<f4", mode="r", shape=shape)
            self._states = np.memmap(
                path, dtype=ROW, mode="r", offset=rows_at, shape=(batch.rows_done,)
            )

    def at(self, indices: NDArray[np.int64]) -> list[StoredRow]:
        """The rows of these numbers, in their order."""
        rows: list[Any] = [None] * len(indices)
        blocks = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(blocks).tolist():
            places = np.flatnonzero(blocks == number)
            block = self._reader.get_batch(number)
            first = self._ends[number] - block.num_rows
            taken = block.take(pa.array(indices[places] - first)).to_pydict()
            numbers = indices[places].tolist()
            listed = zip(
                places.tolist(), _at_hand(numbers, taken.get(TEXT_COLUMN)), taken[ECHO_COLUMN],
                taken[DIMS_COLUMN], taken[EMPTY_COLUMN], strict=True,
            )  # fmt: skip
            for place, at, echo, dims, empty in listed:
                rows[place] = StoredRow(at, echo, dims, empty)
        self._add_results(rows, indices)
        return rows

    def _add_results(self, rows: list[StoredRow], indices: NDArray[np.int64]) -> None:
        done = np.flatnonzero(indices < self._batch.rows_done)
        states = self._states[indices[done]]
        for place, tokens, truncated in zip(
            done.tolist(), states["tokens"].tolist(), states["truncated"].tolist(), strict=True
        ):
            row = rows[place]
            row.tokens, row.truncated = tokens, truncated
            row.error = self._errors.get(row.at.index)

    def vectors(self, indices: NDArray[np.int64]) -> Matrix:
        """The vectors of rows that are done, `[n, dims]`."""
        vectors: Matrix = np.ascontiguousarray(self._vectors[indices], dtype=np.float32)
        return vectors

    def close(self) -> None:
        """Lets go of the files."""
        self._source.close()


def _at_hand(numbers: list[int], texts: list[str] | None) -> list[RowAtHand]:
    if texts is None:
        return [RowAtHand(number, "", b"") for number in numbers]
    return [
        RowAtHand(number, text, sha256(text.encode("utf-8", "surrogatepass")).digest())
        for number, text in zip(numbers, texts, strict=True)
    ]
