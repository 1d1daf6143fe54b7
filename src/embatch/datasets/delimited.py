"""The reader of CSV and TSV files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.csv

from embatch.datasets.readers import Columns, open_stream, pieces
from embatch.errors import InputError
from embatch.storage.places import Place

_PARSE_BLOCKS: Final = (1 << 20, 32 << 20, 1 << 30)
"""Bytes parsed at a time. A row must fit in one, else the next size is tried. A few dozen
are parsed ahead."""
_TOO_LONG: Final = "straddles two block boundaries"
_ROW: Final = re.compile(r"Row #(\d+)")
_COLUMNS: Final = re.compile(r"Expected (\d+) columns, got (\d+)")
_BOM: Final = b"\xef\xbb\xbf"


class _RowTooLongError(Exception):
    """A row does not fit in the block that is parsed at a time."""


@dataclass(frozen=True, slots=True)
class DelimitedReader:
    """Reads CSV (RFC 4180) or TSV with a header. Every column is a string, just as it is written.

    Quoted fields may hold the delimiter and line ends. Empty lines are no rows.
    """

    path: Place
    delimiter: str
    compression: str | None = None

    def describe(
        self,
        text: str | None,  # noqa: ARG002 - the header names all columns
        key: str | None,  # noqa: ARG002
        keep: tuple[str, ...],  # noqa: ARG002
    ) -> pa.Schema | None:
        """The header's columns, all strings; None for an empty file."""
        if self._empty():
            return None
        for size in _PARSE_BLOCKS:
            try:
                with self._parsing(), self._open_stream() as stream:
                    names = self._open(stream, size, ()).schema.names
            except _RowTooLongError:
                continue
            return pa.schema([(name, pa.string()) for name in names])
        raise self._row_too_long()

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows from the `start`-th on (the header is none); see `Reader.read`."""
        if self._empty():
            return
        row = start
        for size in _PARSE_BLOCKS:
            try:
                for batch in self._rows(columns, row, size):
                    row += batch.num_rows
                    yield from pieces(batch, block_rows)
            except _RowTooLongError:
                continue
            return
        raise self._row_too_long()

    def _empty(self) -> bool:
        with self._parsing(), self._open_stream() as stream:
            return not stream.read(len(_BOM) + 1).removeprefix(_BOM)

    def _rows(self, columns: Columns, start: int, size: int) -> Iterator[pa.RecordBatch]:
        row = 0
        with self._parsing(), self._open_stream() as stream:
            for batch in self._open(stream, size, columns.needed):
                wanted = batch.slice(min(max(0, start - row), batch.num_rows))
                row += batch.num_rows
                if wanted.num_rows:
                    yield columns.arrange(dict(zip(columns.needed, wanted.columns, strict=True)))

    def _open_stream(self) -> pa.NativeFile:
        return open_stream(self.path, self.compression)

    def _open(
        self, stream: pa.NativeFile, size: int, needed: tuple[str, ...]
    ) -> pyarrow.csv.CSVStreamingReader:
        return pyarrow.csv.open_csv(
            stream,
            # One thread: only then do errors know their row.
            read_options=pyarrow.csv.ReadOptions(block_size=size, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(needed),
                column_types=dict.fromkeys(needed, pa.string()),
                strings_can_be_null=False,
            ),
        )

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        """Errors in our words: the parser's own quote the row, which holds users' texts."""
        try:
            yield
        except pa.ArrowInvalid as error:
            said = str(error)
            if _TOO_LONG in said:
                raise _RowTooLongError from error
            raise InputError(self._complaint(said)) from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}") from error

    def _complaint(self, said: str) -> str:
        found = _ROW.search(said)
        where = f"row {found[1]} of {self.path} (the header is row 1)" if found else str(self.path)
        if "UTF8" in said:
            return f"{where} is not UTF-8: convert the file to UTF-8"
        if counts := _COLUMNS.search(said):
            return f"{where} has {counts[2]} columns where the header has {counts[1]}: mend the row"
        return f"{where} is broken: it cannot be parsed with {self.delimiter!r} between the columns"

    def _row_too_long(self) -> InputError:
        return InputError(
            f"{self.path} has a row of more than {_PARSE_BLOCKS[-1] >> 20} MB: "
            "a quote is probably not closed"
        )
