"""The frozen copy of each batch's items, on disk until their part is published."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from embatch.datasets.durable import write_whole
from embatch.errors import InvalidRequestError, StorageError
from embatch.storage.places import Place, local_copy, make_folder, scratch_of

STAGE_ROWS: Final = 8192
"""Items in one record batch of a stage file."""
DIGEST_BYTES: Final = 32
SPOOL_ROWS: Final = 65_536
"""Copies that wait in memory before they are written as a run."""
SPOOL_BYTES: Final = 32 << 20
"""Or their bytes, when kept columns are long."""


class StageFile:
    """The staged items of one batch: an Arrow IPC file. Never changes once written.

    Every read opens the file anew, so a stage holds nothing open. A stage that is gone or broken
    raises `StorageError`.
    """

    def __init__(self, place: Place) -> None:
        self.place: Final = place

    def __repr__(self) -> str:
        return f"StageFile({str(self.place)!r})"

    @property
    def path(self) -> Path:
        """The file on this machine: of an object a copy, which may go when it is unused."""
        with self._here() as path:
            return path

    @property
    def scratch(self) -> Path:
        """A folder of this machine for what is made of the items for a while."""
        return scratch_of(self.place.parent)

    def exists(self) -> bool:
        """It has not been removed."""
        return self.place.exists()

    def remove(self) -> None:
        """Removes it, if it is there."""
        self.place.unlink(missing_ok=True)

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
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.items:
            raise InvalidRequestError(f"{self.place} has the items 0..{self.items - 1}")
        if not wanted.size:
            return self.schema.empty_table()
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the items on this machine while they are read again and again."""
        with self._here():
            yield

    @contextmanager
    def _here(self) -> Iterator[Path]:
        with ExitStack() as stack:
            try:
                path = stack.enter_context(local_copy(self.place, settled=True))
            except FileNotFoundError as error:
                raise StorageError(f"the staged items {self.place} are gone") from error
            yield path

    @contextmanager
    def _open(self, *, mapped: bool) -> Iterator[pa.RecordBatchFileReader]:
        with self._here() as path, ExitStack() as stack:
            try:
                source = pa.memory_map(str(path)) if mapped else pa.OSFile(str(path))
                reader = stack.enter_context(pa.ipc.open_file(source))
            except FileNotFoundError as error:
                raise StorageError(f"the staged items {self.place} are gone") from error
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"the staged items {self.place} are broken: {error}") from error
            yield reader


def write_stage(path: Place, items: pa.Table | Iterable[pa.RecordBatch]) -> StageFile:
    """Writes a stage file, whole or not at all, fsynced. An existing one is replaced."""
    batches = items.to_batches() if isinstance(items, pa.Table) else iter(items)
    if isinstance(items, pa.Table):
        schema = items.schema
    else:
        first = next(batches, None)
        if first is None:
            raise InvalidRequestError(f"no items to stage in {path}")
        schema, batches = first.schema, chain([first], batches)
    with write_whole(path, settled=True) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]), max_chunksize=STAGE_ROWS)
        sink.flush()
    return StageFile(path)


class CopySpool:
    """Gathers the rows whose text stands elsewhere, to be taken out in the order of their owners.

    What was added is on disk after `flush`, as one run more in `folder`. Opened with the number of
    runs that a caller has on record, later ones are deleted: reading goes on from that record.
    Rows must be added in ascending order.
    """

    def __init__(self, folder: Place, *, runs: int = 0) -> None:
        self._folder = folder
        self._scratch = scratch_of(folder)
        self._waiting: list[pa.Table] = []
        self.runs = runs
        make_folder(self._scratch)
        self.truncate(runs)

    def _run(self, number: int) -> StageFile:
        return StageFile(self._folder / f"run-{number:06d}.arrow")

    def truncate(self, runs: int) -> None:
        """Keeps the first `runs` runs, and nothing that waits."""
        for leftover in self._folder.glob(".run-*"):
            leftover.unlink()
        for path in self._folder.glob("run-*.arrow"):
            if int(path.stem.removeprefix("run-")) >= runs:
                path.unlink()
        self._waiting.clear()
        self.runs = runs

    @property
    def full(self) -> bool:
        """So much waits in memory that it should be flushed."""
        rows = sum(table.num_rows for table in self._waiting)
        size = sum(table.nbytes for table in self._waiting)
        return bool(rows >= SPOOL_ROWS or size >= SPOOL_BYTES)

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `key`, `row`, `text_sha256`, `owner_row` and the kept columns."""
        if rows.num_rows:
            self._waiting.append(rows)

    def flush(self) -> int:
        """Writes what waits as a run, fsynced. Gives the number of runs now."""
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            order = np.argsort(table.column("owner_row").to_numpy(), kind="stable")
            write_stage(self._run(self.runs).place, table.take(pa.array(order)))
            self.runs += 1
            self._waiting = []
        return self.runs

    def merge(
        self, max_rows: int, *, skip_rows: int = 0, scratch: str = "merge"
    ) -> Iterator[pa.Table]:
        """All rows, by owner, in groups of at most `max_rows`; each group is sorted by row.

        `skip_rows` leaves out the first ones: as many as were taken before, whatever the size of
        the groups was then. `scratch` names a file for this merge alone.
        """
        runs = [self._run(number) for number in range(self.runs)]
        owners = _Owners.gather(self._scratch / f"owners-{scratch}.bin", runs)
        try:
            done = owners.after(owners.starts, skip_rows)
            with ExitStack() as stack:
                for run in runs:
                    stack.enter_context(run.held())
                while (done < owners.ends).any():
                    ends = owners.after(done, max_rows)
                    pieces = [
                        runs[number].take(
                            np.arange(done[number], ends[number]) - owners.starts[number]
                        )
                        for number in np.flatnonzero(ends > done).tolist()
                    ]
                    table = pa.concat_tables(pieces)
                    order = np.argsort(table.column("row").to_numpy(), kind="stable")
                    yield table.take(pa.array(order))
                    done = ends
        finally:
            owners.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Owners:
    """The owner rows of all runs in one file, each run sorted: where to cut is a search in it."""

    path: Path
    starts: NDArray[np.int64]
    """Where each run begins in the file."""
    ends: NDArray[np.int64]

    @classmethod
    def gather(cls, path: Path, runs: Sequence[StageFile]) -> "_Owners":
        with path.open("wb") as file:
            for run in runs:
                for batch in run.read():
                    file.write(batch.column("owner_row").to_numpy().data)
        ends = np.cumsum([run.items for run in runs], dtype=np.int64)
        return cls(path, np.concatenate([[0], ends[:-1]]).astype(np.int64) if runs else ends, ends)

    def after(self, places: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """Each run's place `rows` further on, by owner and among equal owners by run."""
        if rows >= int((self.ends - places).sum()):
            return self.ends
        # Mapped for one search only: pages of a mapping count as memory of the process.
        mapped = np.memmap(self.path, np.int64, mode="r")
        slices = [mapped[a:b] for a, b in zip(places, self.ends, strict=True)]
        heads = [part for part in slices if len(part)]
        low, high = min(int(part[0]) for part in heads), max(int(part[-1]) for part in heads) + 1
        while high - low > 1:  # the rows of owners before `low` fit, those before `high` do not
            middle = (low + high) // 2
            fits = sum(int(np.searchsorted(part, middle)) for part in slices) <= rows
            low, high = (middle, high) if fits else (low, middle)
        reached = places + np.array([np.searchsorted(part, low) for part in slices])
        left = rows - int((reached - places).sum())
        for number, part in enumerate(slices):
            of_low = int(np.searchsorted(part, low, side="right"))
            more = min(left, of_low - int(reached[number] - places[number]))
            reached[number] += more
            left -= more
        return np.asarray(reached, dtype=np.int64)
