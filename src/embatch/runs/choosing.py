"""Tells, block by block, which rows to embed, which have their vector elsewhere, which no text."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embatch.datasets.column_types import block_name
from embatch.datasets.digests import Digest
from embatch.datasets.sorted_runs import text_digests
from embatch.journal.records import Failure

Elsewhere = Literal["copies", "reused"]
EMPTY_TEXT = "empty_text"


class Chooser:
    """Sorts the rows of a source by what pass 1 found out about their texts."""

    def __init__(
        self, digest: Digest, keep: tuple[str, ...], done: NDArray[np.bool_] | None
    ) -> None:
        """`done` marks rows that stand in adopted parts, None when there are none."""
        self._pairs = {
            "copies": (digest.copies["row"], digest.copies["owner_row"]),
            "reused": (digest.reused["row"], digest.reused["old_row"]),
        }
        self._keep = [block_name(name) for name in keep]
        self._done = done

    def to_embed(self, first_row: int, batch: pa.RecordBatch) -> tuple[pa.Table, list[Failure]]:
        """The rows whose text must be embedded, and the rows without a text."""
        table = _with_rows(first_row, batch)
        sizes = pc.fill_null(pc.binary_length(batch["text"]), 0)
        empty = sizes.to_numpy(zero_copy_only=False) == 0
        wanted = ~empty
        for kind in self._pairs:
            rows, _ = self._pairs_in(kind, first_row, batch.num_rows)
            wanted[rows - first_row] = False
        if self._done is not None:
            wanted &= ~self._done[first_row : first_row + batch.num_rows]
        chosen = table if wanted.all() else table.filter(pa.array(wanted))
        chosen = chosen.add_column(3, "text_sha256", text_digests(chosen["text"]))
        return chosen, _empty_failures(table.filter(pa.array(empty)))

    def elsewhere(self, kind: Elsewhere, first_row: int, batch: pa.RecordBatch) -> pa.Table:
        """The rows whose text stands elsewhere, with the row that owns it there."""
        rows, owners = self._pairs_in(kind, first_row, batch.num_rows)
        if self._done is not None:
            is_open = ~self._done[rows]
            rows, owners = rows[is_open], owners[is_open]
        table = _with_rows(first_row, batch).take(pa.array(rows - first_row))
        table = table.append_column("text_sha256", text_digests(table["text"]))
        table = table.append_column("owner_row", pa.array(owners, pa.int64()))
        return table.select(["key", "row", "text_sha256", "owner_row", *self._keep])

    def _pairs_in(
        self, kind: str, first_row: int, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, owners = self._pairs[kind]
        low, high = np.searchsorted(rows, [first_row, first_row + count])
        return rows[low:high].astype(np.int64), owners[low:high].astype(np.int64)


def _with_rows(first_row: int, batch: pa.RecordBatch) -> pa.Table:
    numbers = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)
    return pa.Table.from_batches([batch]).add_column(1, "row", pa.array(numbers))


def _empty_failures(table: pa.Table) -> list[Failure]:
    return [
        Failure(row=row, key=key, code=EMPTY_TEXT, message="the text is empty", attempts=0)
        for row, key in zip(table["row"].to_pylist(), table["key"].to_pylist(), strict=True)
    ]
