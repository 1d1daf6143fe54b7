"""Lines of a file, and the reader of files with a text a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

import pyarrow as pa

from embatch.datasets.readers import MAX_BLOCK_BYTES, Columns, open_stream, reading
from embatch.errors import InputError
from embatch.storage.places import Place

_CHUNK_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


def numbered_lines(path: Place, compression: str | None) -> Iterator[tuple[int, bytes]]:
    """Each line of a file without its `\\n`, numbered from 1; a byte order mark is dropped.

    Only `\\n` ends a line. The last line needs none.
    """
    number = 0
    with (
        reading(path, f"{compression} file" if compression else "lines"),
        open_stream(path, compression) as stream,
    ):
        pending: list[bytes] = []
        while chunk := stream.read(_CHUNK_BYTES):
            head, *rest = chunk.split(b"\n")
            pending.append(head)
            if not rest:
                continue
            lines = [b"".join(pending), *rest[:-1]]
            pending = [rest[-1]]
            if number == 0:
                lines[0] = lines[0].removeprefix(_BOM)
            yield from enumerate(lines, number + 1)
            number += len(lines)
        last = b"".join(pending)
        if number == 0:
            last = last.removeprefix(_BOM)
        if last:
            yield number + 1, last


def line_blocks(
    lines: Iterator[tuple[int, bytes]], block_rows: int
) -> Iterator[list[tuple[int, bytes]]]:
    """Lines in lists of at most `block_rows` and, together, about `MAX_BLOCK_BYTES`."""
    block: list[tuple[int, bytes]] = []
    size = 0
    for numbered in lines:
        block.append(numbered)
        size += len(numbered[1])
        if len(block) >= block_rows or size >= MAX_BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def not_utf8(path: Place, line: int) -> InputError:
    """The error for a line that is not UTF-8."""
    return InputError(f"line {line} of {path} is not UTF-8: convert the file to UTF-8")


@dataclass(frozen=True, slots=True)
class TextReader:
    """Reads a file with a text a line; an empty line is an empty text.

    A file whose first line ends in CRLF was written with CRLF: there the carriage return before
    each `\\n` belongs to the line end. In any other file it belongs to the text.
    """

    path: Place
    compression: str | None = None

    def describe(
        self,
        text: str | None,  # noqa: ARG002 - the one column is known
        key: str | None,  # noqa: ARG002
        keep: tuple[str, ...],  # noqa: ARG002
    ) -> pa.Schema | None:
        """One string column `text`; None for a file without lines."""
        first = next(numbered_lines(self.path, self.compression), None)
        return None if first is None else pa.schema([("text", pa.string())])

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The lines from line `start` (from 0) on; see `Reader.read`."""
        lines = numbered_lines(self.path, self.compression)
        first = next(lines, None)
        if first is None:
            return
        line_end = b"\r" if first[1].endswith(b"\r") else b""
        lines = chain([first], lines)
        wanted = (numbered for numbered in lines if numbered[0] > start)
        for block in line_blocks(wanted, block_rows):
            texts = [line.removesuffix(line_end) for _, line in block]
            array = self._strings(texts, block[0][0])
            yield columns.arrange(dict.fromkeys(columns.needed, array))

    def _strings(self, texts: list[bytes], first_line: int) -> pa.Array:
        try:
            return pa.array(texts, pa.string())
        except pa.ArrowInvalid:
            for number, line in enumerate(texts, first_line):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise not_utf8(self.path, number) from error
            raise
