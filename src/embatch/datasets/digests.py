"""Pass 1 over a source: duplicate keys, texts that stand twice, texts that an output has already.

Memory stays within a fixed budget whatever the number of rows: digests go to disk in sorted runs.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embatch.datasets.durable import fsync_path, storage_error, write_bytes_whole
from embatch.datasets.sorted_runs import (
    MEMORY_BYTES,
    PAIR,
    DigestRuns,
    Flags,
    Records,
    RunFile,
    digest_records,
    leaders,
    pairs,
    text_digests,
)
from embatch.datasets.source import Source
from embatch.errors import DuplicateKeyError, NotFoundError
from embatch.storage.places import make_folder

__all__ = ["DIGEST_FILE", "Digest", "read_digest", "text_digests"]

COPY: Final = np.dtype([("row", "<i8"), ("owner_row", "<i8")])
"""A row whose text stands at the earlier row `owner_row`; that row is no copy itself."""
REUSED: Final = np.dtype([("row", "<i8"), ("old_row", "<i8")])
"""A row whose text stands at row `old_row` of an earlier output."""
_SHOWN_KEY_CHARS: Final = 80
DIGEST_FILE: Final = "digest.json"
"""Written last: with it the digest is complete."""
_COPIES_FILE: Final = "copies.bin"
_REUSED_FILE: Final = "reused.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What pass 1 found. Stands in its folder and can be loaded again."""

    folder: Path
    rows: int
    """Rows of the source."""
    empty: int
    """Rows whose text is null or ""."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    longest_bytes: int
    """UTF-8 bytes of the longest text."""
    copy_rows: int
    reused_rows: int
    saved_bytes: int
    """UTF-8 bytes of the copies' and the reused rows' texts, which need not be embedded."""

    @property
    def embed_rows(self) -> int:
        """Rows to embed: those that are neither empty nor copies nor reused."""
        return self.rows - self.empty - self.copy_rows - self.reused_rows

    @property
    def embed_bytes(self) -> int:
        """UTF-8 bytes of the texts to embed: what a token estimate starts from."""
        return self.text_bytes - self.saved_bytes

    @property
    def copies(self) -> NDArray[np.void]:
        """`row`, `owner_row` of every copy, by row: a read-only memory map of dtype `COPY`."""
        return _mapped(self.folder / _COPIES_FILE, COPY, self.copy_rows)

    @property
    def reused(self) -> NDArray[np.void]:
        """`row`, `old_row` of every reused row, by row: a memory map of dtype `REUSED`."""
        return _mapped(self.folder / _REUSED_FILE, REUSED, self.reused_rows)

    @classmethod
    def load(cls, folder: Path) -> "Digest":
        """The digest that stands complete in `folder`; `NotFoundError` when there is none."""
        try:
            values = orjson.loads((folder / DIGEST_FILE).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise NotFoundError(f"no complete digest of the source is in {folder}") from error
        return cls(folder=folder, **values)


def _mapped(path: Path, dtype: np.dtype[Any], rows: int) -> NDArray[np.void]:
    if not rows:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", shape=(rows,))


def read_digest(
    source: Source,
    folder: Path,
    *,
    reuse: Iterable[Records] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> Digest:
    """Reads the source once. What stands in `folder` is deleted first.

    `reuse` gives an earlier output as blocks from `digest_records`, with that output's rows.
    `on_progress` is called with the number of rows read. Raises `DuplicateKeyError` naming the
    key and both rows, and the source's own errors.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make_folder(folder)
        with ExitStack() as stack:
            reading = _Pass.begin(source, folder, memory_bytes, stack)
            reading.read(on_progress)
            return reading.join(reuse)
    except OSError as error:
        raise storage_error(folder, error) from error


@dataclass(slots=True)
class _Pass:
    """The state of one reading."""

    source: Source
    folder: Path
    memory_bytes: int
    stack: ExitStack
    """Removes the scratch files at the end, whatever it is."""
    texts: DigestRuns
    keys: DigestRuns | None
    rows: int = 0
    empty: int = 0
    text_bytes: int = 0
    longest_bytes: int = 0

    @classmethod
    def begin(cls, source: Source, folder: Path, memory_bytes: int, stack: ExitStack) -> "_Pass":
        def runs(name: str) -> DigestRuns:
            created = DigestRuns.create(folder, name, memory_bytes)
            stack.callback(created.delete)
            return created

        return cls(
            source=source,
            folder=folder,
            memory_bytes=memory_bytes,
            stack=stack,
            texts=runs("texts"),
            keys=None if source.key_column is None else runs("keys"),
        )

    def read(self, on_progress: Callable[[int], None] | None) -> None:
        for block in self.source.read():
            rows = np.arange(block.first_row, block.end.row)
            if self.keys is not None:
                records = digest_records(text_digests(block.batch.column("key")), rows)
                if self.keys.add(records):
                    self._refuse(self.keys.repeats.run(self.keys.repeats.runs - 1))
            self._add_texts(block.batch.column("text"), rows)
            self.rows = block.end.row
            if on_progress is not None:
                on_progress(self.rows)
        self.texts.flush()
        if self.keys is not None:
            self.keys.flush()
            for found in self.keys.repeated():
                self._refuse(found)
            self.keys.delete()

    def _add_texts(self, texts: pa.StringArray, rows: NDArray[np.int64]) -> None:
        sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy().astype(np.int64)
        self.text_bytes += int(sizes.sum())
        self.longest_bytes = max(self.longest_bytes, int(sizes.max()))
        filled = sizes > 0
        if not filled.all():
            self.empty += int((~filled).sum())
            texts, rows, sizes = texts.filter(pa.array(filled)), rows[filled], sizes[filled]
        self.texts.add(digest_records(text_digests(texts), rows, sizes))

    def _refuse(self, repeated: Records) -> None:
        if not len(repeated):
            return
        row, first = int(repeated["row"][0]), int(repeated["owner_row"][0])
        key = repr(self.source.key_at(row))
        shown = key if len(key) <= _SHOWN_KEY_CHARS else key[:_SHOWN_KEY_CHARS] + "…"
        raise DuplicateKeyError(
            f"key {shown} in column {self.source.key_column!r} stands in row {first} and in row "
            f"{row} (from 0): give each row a key of its own, or leave out the key column to use "
            "row numbers"
        )

    def join(self, reuse: Iterable[Records] | None) -> Digest:
        old = None if reuse is None else self._old_runs(reuse)
        copies = RunFile(self.folder / "copies.runs", PAIR, "row")
        self.stack.callback(copies.delete)
        reused = RunFile(self.folder / "reused.runs", PAIR, "row")
        self.stack.callback(reused.delete)
        _join_runs(self.texts, old, copies, reused)
        saved = np.zeros(3, dtype=np.int64)
        with (
            (self.folder / _COPIES_FILE).open("wb") as copies_file,
            (self.folder / _REUSED_FILE).open("wb") as reused_file,
        ):
            for copy_pairs, reused_pairs in _by_run(self.texts, copies, reused):
                _write_pairs(copies_file, copy_pairs, COPY, "owner_row")
                _write_pairs(reused_file, reused_pairs, REUSED, "old_row")
                size = copy_pairs["size"].sum() + reused_pairs["size"].sum()
                saved += (len(copy_pairs), len(reused_pairs), size)
        fsync_path(self.folder / _COPIES_FILE)
        fsync_path(self.folder / _REUSED_FILE)
        digest = Digest(
            folder=self.folder,
            rows=self.rows,
            empty=self.empty,
            text_bytes=self.text_bytes,
            longest_bytes=self.longest_bytes,
            copy_rows=int(saved[0]),
            reused_rows=int(saved[1]),
            saved_bytes=int(saved[2]),
        )
        values = {k: v for k, v in asdict(digest).items() if k != "folder"}
        write_bytes_whole(self.folder / DIGEST_FILE, orjson.dumps(values))
        return digest

    def _old_runs(self, reuse: Iterable[Records]) -> DigestRuns:
        old = DigestRuns.create(self.folder, "old", self.memory_bytes)
        self.stack.callback(old.delete)
        for records in reuse:
            old.add(records)
        old.flush()
        return old


def _join_runs(texts: DigestRuns, old: DigestRuns | None, copies: RunFile, reused: RunFile) -> None:
    """Finds which run's first rows of a text are not the first of all, or are in the old output."""
    if texts.unique.runs <= 1 and old is None:
        return
    for records, first, is_old in texts.ranges(old):
        leader = leaders(first)
        follows = ~first & ~is_old
        led_by_old = is_old[leader]
        copies.append(pairs(records, leader, follows & ~led_by_old))
        reused.append(pairs(records, leader, follows & led_by_old))


def _by_run(
    texts: DigestRuns, copies: RunFile, reused: RunFile
) -> Iterator[tuple[Records, Records]]:
    """All copies and all reused rows, run by run of the source's rows, each sorted by row."""
    ends: list[int | None] = [*texts.row_starts[1:], None]
    for number, (low, high) in enumerate(zip(texts.row_starts, ends, strict=False)):
        found_copies = _by_row(copies.between(low, high))
        found_reused = _by_row(reused.between(low, high))
        repeats = texts.repeats.run(number)
        old_of, is_reused = _looked_up(found_reused, repeats["owner_row"])
        owner_of, is_copy = _looked_up(found_copies, repeats["owner_row"])
        repeats["owner_row"][is_copy] = owner_of[is_copy]
        repeats["owner_row"][is_reused] = old_of[is_reused]
        yield (
            _by_row(np.concatenate([found_copies, repeats[~is_reused]])),
            _by_row(np.concatenate([found_reused, repeats[is_reused]])),
        )


def _looked_up(found: Records, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Flags]:
    """For each of `rows` its owner in `found` (sorted by row), and whether it is there."""
    if not len(found):
        return rows, np.zeros(len(rows), dtype=np.bool_)
    places = np.minimum(np.searchsorted(found["row"], rows), len(found) - 1)
    return found["owner_row"][places], found["row"][places] == rows


def _by_row(records: Records) -> Records:
    return records[np.argsort(records["row"], kind="stable")]


def _write_pairs(file: BinaryIO, found: Records, dtype: np.dtype[Any], target: str) -> None:
    written = np.empty(len(found), dtype)
    written["row"] = found["row"]
    written[target] = found["owner_row"]
    file.write(written.data)
