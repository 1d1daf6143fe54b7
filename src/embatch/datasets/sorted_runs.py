"""Sorting more than memory holds: sorted runs on disk, read back a range of the sort field at once.

Digests of texts and keys are spread evenly, so equal ranges of their first 64 bits hold about
equally many records. Within a run a digest stands once: what repeats it is set aside as pairs, so
that a text that stands in every row fills no range.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.stage import DIGEST_BYTES

RECORD: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8"), ("size", "<i8")])
"""The first 128 bits of a SHA-256, the row it is of, and the size of its text in bytes."""
PAIR: Final = np.dtype([("row", "<i8"), ("owner_row", "<i8"), ("size", "<i8")])
"""A row, and the earlier row (or the row of another output) whose text is the same."""
MEMORY_BYTES: Final = 16 << 20
_SORTING_BYTES: Final = 256
"""Memory that sorting takes a record, copies and index arrays included, rounded up."""
_FENCE_RECORDS: Final = 1024
"""One value of so many is kept in memory, to find the way into a run."""
_HASH_SPACE: Final = 1 << 64

Records = NDArray[np.void]
Flags = NDArray[np.bool_]


def text_digests(column: pa.Array | pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    """SHA-256 of each string's UTF-8 bytes, as a column of 32 bytes; null counts as empty."""
    data = b"".join(_hash_bytes(column))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIGEST_BYTES), len(column), [None, pa.py_buffer(data)]
    )


def _hash_bytes(column: pa.Array | pa.ChunkedArray) -> Iterator[bytes]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        array = chunk.fill_null("") if chunk.null_count else chunk
        _, offsets, data = array.buffers()
        if not len(array):
            continue
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        view = memoryview(data if data is not None else b"")
        sha256 = hashlib.sha256
        yield b"".join([sha256(view[a:b]).digest() for a, b in pairwise(ends.tolist())])


def digest_records(
    digests: pa.FixedSizeBinaryArray, rows: NDArray[np.int64], sizes: NDArray[np.int64] | int = 0
) -> Records:
    """Records of SHA-256 digests (a column of 32 bytes), as sorting and `reuse` take them."""
    records = np.empty(len(rows), dtype=RECORD)
    start = digests.offset * DIGEST_BYTES
    words = np.frombuffer(digests.buffers()[1], "<u8", count=4 * len(rows), offset=start)
    records["high"], records["low"] = words[0::4], words[1::4]
    records["row"], records["size"] = rows, sizes
    return records


class RunFile:
    """A file of sorted runs of fixed-size records.

    It is read, not mapped: pages of a mapping count as memory of the process.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], by: str) -> None:
        self._path, self._dtype, self._by = path, dtype, by
        self._ends = [0]
        self._fences: list[NDArray[Any]] = []
        self._file = path.open("w+b")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def runs(self) -> int:
        """How many runs were appended."""
        return len(self._ends) - 1

    def append(self, records: Records) -> None:
        """Adds a run; its records are in the order of the sort field."""
        self._file.write(np.ascontiguousarray(records).data)
        self._ends.append(self._ends[-1] + len(records))
        self._fences.append(records[self._by][::_FENCE_RECORDS].copy())

    def run(self, number: int) -> Records:
        """One run, as it was appended."""
        return self._read(self._ends[number], self._ends[number + 1])

    def between(self, low: int, high: int | None) -> Records:
        """The records of all runs with low <= field < high (None: no end), in the runs' order."""
        scalar = self._dtype[self._by].type
        found = []
        for (start, end), fences in zip(pairwise(self._ends), self._fences, strict=True):
            # The last fence below `low` begins the block that may hold it.
            first = max(0, int(np.searchsorted(fences, scalar(low))) - 1)
            last = len(fences) if high is None else int(np.searchsorted(fences, scalar(high)))
            if last <= first:
                continue
            block = self._read(
                start + first * _FENCE_RECORDS, min(end, start + last * _FENCE_RECORDS)
            )
            values = block[self._by]
            begin = int(np.searchsorted(values, scalar(low)))
            stop = len(block) if high is None else int(np.searchsorted(values, scalar(high)))
            if stop > begin:
                found.append(block[begin:stop])
        return np.concatenate(found) if found else np.empty(0, self._dtype)

    def _read(self, start: int, end: int) -> Records:
        self._file.seek(start * self._dtype.itemsize)
        records = np.fromfile(self._file, self._dtype, end - start)
        self._file.seek(0, os.SEEK_END)
        return records

    def delete(self) -> None:
        """Closes and removes the file. Safe to call twice."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def sort_order(records: Records) -> tuple[NDArray[np.int64], Flags]:
    """The order of the records by digest, equal ones as given, and which begin a new digest."""
    # One quick sort, then the few ties in order: several times faster than a sort by all fields.
    order = np.argsort(records["high"])
    high = records["high"][order]
    same = high[1:] == high[:-1]
    tied = np.zeros(len(order), dtype=np.bool_)
    tied[1:] = same
    tied[:-1] |= same
    ties = order[tied]
    order[tied] = ties[np.lexsort((ties, records["low"][ties], high[tied]))]
    low = records["low"][order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = ~same | (low[1:] != low[:-1])
    return order, first


def leaders(first: Flags) -> NDArray[np.int64]:
    """For each record in digest order the index of the first of its digest."""
    return np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))


def pairs(records: Records, leader: NDArray[np.int64], chosen: Flags) -> Records:
    """The chosen records, each with its leader's row; sorted by row."""
    found = np.empty(int(chosen.sum()), dtype=PAIR)
    found["row"], found["size"] = records["row"][chosen], records["size"][chosen]
    found["owner_row"] = records["row"][leader[chosen]]
    return found[np.argsort(found["row"], kind="stable")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRuns:
    """Records in sorted runs. Rows must come in ascending order."""

    unique: RunFile
    """The first record of each digest in its run."""
    repeats: RunFile
    """A run of pairs for each run: the other records, with the run's first of their digest."""
    run_rows: int
    memory_bytes: int
    row_starts: list[int]
    """First row of each run."""
    _waiting: list[Records]

    @classmethod
    def create(cls, folder: Path, name: str, memory_bytes: int = MEMORY_BYTES) -> "DigestRuns":
        """New runs in files of `folder` that begin with `name`."""
        return cls(
            unique=RunFile(folder / f"{name}.unique", RECORD, "high"),
            repeats=RunFile(folder / f"{name}.repeats", PAIR, "row"),
            run_rows=max(1, memory_bytes // _SORTING_BYTES),
            memory_bytes=memory_bytes,
            row_starts=[],
            _waiting=[],
        )

    def add(self, records: Records) -> bool:
        """Takes records; True when a run was written, so that `repeats` has a new one."""
        self._waiting.append(records)
        return sum(map(len, self._waiting)) >= self.run_rows and self.flush()

    def flush(self) -> bool:
        """Writes what waits as a run; False when nothing waits."""
        if not any(map(len, self._waiting)):
            return False
        records = np.concatenate(self._waiting)
        self._waiting.clear()
        self.row_starts.append(int(records["row"].min()))
        order, first = sort_order(records)
        ordered = records[order]
        self.unique.append(ordered[first])
        self.repeats.append(pairs(ordered, leaders(first), ~first))
        return True

    def ranges(self, before: "DigestRuns | None" = None) -> Iterator[tuple[Records, Flags, Flags]]:
        """All unique records by digest, a range at a time within the memory.

        Gives records, which is the first of its digest, and which are of `before`: those stand
        before all others of the same digest.
        """
        total = len(self.unique) + (len(before.unique) if before else 0)
        count = max(1, -(-total * _SORTING_BYTES // self.memory_bytes))
        for number in range(count):
            low = _HASH_SPACE * number // count
            high = _HASH_SPACE * (number + 1) // count if number + 1 < count else None
            own = self.unique.between(low, high)
            old = before.unique.between(low, high) if before else own[:0]
            both = np.concatenate([old, own])
            order, first = sort_order(both)
            yield both[order], first, order < len(old)

    def repeated(self) -> Iterator[Records]:
        """Pairs of all records whose digest stood before; a record may come in any order."""
        for number in range(self.repeats.runs):
            if len(found := self.repeats.run(number)):
                yield found
        if self.unique.runs > 1:
            for records, first, _ in self.ranges():
                if not first.all():
                    yield pairs(records, leaders(first), ~first)

    def delete(self) -> None:
        """Removes the files."""
        self.unique.delete()
        self.repeats.delete()
