"""The frozen copy of each batch's items, on disk until their part is published."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from embatch.datasets.durable import write_whole
from embatch.errors import InvalidRequestError, StorageError

STAGE_ROWS: Final = 8192
"""Items in one record batch of a stage file."""
DIGEST_BYTES: Final = 32


def stage_schema(keep: pa.Schema) -> pa.Schema:
    """Columns of a stage of items to embed; a kept `text` is the text column itself."""
    kept = [field for field in keep if field.name != "text"]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("text_sha256", pa.binary(DIGEST_BYTES), nullable=False),
            *kept,
        ]
    )


def copies_schema(keep: pa.Schema) -> pa.Schema:
    """Columns of a stage of copies: their vectors come from the part of row `owner_row`."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("text_sha256", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field("owner_row", pa.int64(), nullable=False),
            *keep,
        ]
    )


class StageFile:
    """The staged items of one batch: an Arrow IPC file. Never changes once written.

    Every read opens the file anew, so a stage holds nothing open. A stage that is gone or broken
    raises `StorageError`.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    def __repr__(self) -> str:
        return f"StageFile({str(self.path)!r})"

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Index of the first item of each record batch, and after the last the number of items."""
        with self._open(mapped=True) as reader:
            sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        with self._open(mapped=True) as reader:
            return reader.schema

    @property
    def items(self) -> int:
        """How many items there are."""
        return int(self._starts[-1])

    def read(self) -> Iterator[pa.RecordBatch]:
        """The items in order, in batches of at most `STAGE_ROWS`."""
        with self._open(mapped=False) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    def take(self, indices: ArrayLike) -> pa.Table:
        """The items at these indices (from 0), in the order asked; reads only the batches hit."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.items):
            raise InvalidRequestError(f"{self.path} has the items 0..{self.items - 1}")
        batch_of = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(batch_of, kind="stable")
        numbers, firsts = np.unique(batch_of[order], return_index=True)
        taken = []
        with self._open(mapped=True) as reader:
            for number, positions in zip(numbers, np.split(order, firsts[1:]), strict=True):
                within = wanted[positions] - self._starts[number]
                taken.append(reader.get_batch(int(number)).take(pa.array(within)))
            table = pa.Table.from_batches(taken, reader.schema)
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        return table.take(pa.array(back))

    def _open(self, *, mapped: bool) -> pa.RecordBatchFileReader:
        try:
            source = pa.memory_map(str(self.path)) if mapped else pa.OSFile(str(self.path))
            return pa.ipc.open_file(source)
        except FileNotFoundError as error:
            raise StorageError(f"the staged items {self.path} are gone") from error
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"the staged items {self.path} are broken: {error}") from error


def write_stage(path: Path, items: pa.Table | Iterable[pa.RecordBatch]) -> StageFile:
    """Writes a stage file, whole or not at all, fsynced. An existing one is replaced."""
    batches = items.to_batches() if isinstance(items, pa.Table) else iter(items)
    if isinstance(items, pa.Table):
        schema = items.schema
    else:
        first = next(batches, None)
        if first is None:
            raise InvalidRequestError(f"no items to stage in {path}")
        schema, batches = first.schema, chain([first], batches)
    with write_whole(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]), max_chunksize=STAGE_ROWS)
        sink.flush()
    return StageFile(path)
