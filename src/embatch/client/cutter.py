"""Cuts rows out of what streams by: the lines of a file, the objects of a batch's document.

A finished inline batch answers every poll with all its vectors, twice: in `metadata.output` and in
`response`. Here the document is never built: rows are cut out as byte strings from the list that
comes first, the second list is skipped, and what is left, the envelope, is small.
"""

import re
from typing import Final

LISTS: Final = frozenset({b'"inlinedResponses"', b'"inlinedEmbedContentResponses"'})
"""Names of the list of rows; services nest it in an object of the same name."""
VECTOR: Final = b'"values"'

_NOT_NUMBERS: Final = (b'"', b"[", b"{")

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)
"""A whole string, the start of one that is not whole yet, or a bracket."""


class LineCutter:
    """Takes bytes in pieces; gives whole lines."""

    def __init__(self) -> None:
        self._rest: list[memoryview] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are whole with `chunk`, without their ends; blank ones are left out."""
        lines: list[bytes] = []
        start, view = 0, memoryview(chunk)
        while (end := chunk.find(b"\n", start)) >= 0:
            # Each byte is copied once: lines of many kilobytes are most of the work here.
            line = b"".join([*self._rest, view[start:end]]) if self._rest else chunk[start:end]
            self._rest.clear()
            if line and not line.isspace():
                lines.append(line)
            start = end + 1
        if start < len(chunk):
            self._rest.append(view[start:])
        return lines

    def finish(self) -> list[bytes]:
        """The last line, where the end has no line break."""
        line = b"".join(self._rest)
        self._rest.clear()
        return [line] if line.strip() else []


class DocumentCutter:
    """Takes a document in pieces; gives its rows as they are whole, and the envelope at the end."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows given so far."""
        self._buffer = b""
        self._seen = 0
        """Bytes of the buffer already looked at."""
        self._done = 0
        """Bytes of the buffer already given away, or passed over."""
        self._envelope: list[bytes] = []
        self._depth = 0
        self._list_depth = 0
        """Depth inside the list of rows that is being read, 0 outside of one."""
        self._giving = False
        """The list being read is the first that holds rows."""
        self._name = b""
        """The string read last: before a bracket, the name of what it opens."""
        self._in_vector = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The rows that are whole with `chunk`, each the bytes of one JSON object."""
        self._buffer = self._buffer[self._done :] + chunk
        self._seen -= self._done
        self._done = 0
        rows: list[bytes] = []
        while self._next_token(rows):
            pass
        if not self._list_depth:
            self._keep(self._seen)
        elif self._depth == self._list_depth:
            self._done = self._seen
        return rows

    def envelope(self) -> bytes:
        """The document without its rows. Ask when the stream has ended."""
        return b"".join([*self._envelope, self._buffer[self._done :]])

    def _keep(self, end: int) -> None:
        self._envelope.append(self._buffer[self._done : end])
        self._done = end

    def _next_token(self, rows: list[bytes]) -> bool:
        """Takes one token; False when there is none before more bytes come."""
        if self._in_vector:
            end = self._buffer.find(b"]", self._seen)
            stop = end if end >= 0 else len(self._buffer)
            # What a user wrote under the same name may hold more than numbers.
            plain = all(self._buffer.find(mark, self._seen, stop) < 0 for mark in _NOT_NUMBERS)
            self._in_vector = plain and end < 0
            if plain:
                self._seen = stop
            if self._in_vector:
                return False
        found = _TOKEN.search(self._buffer, self._seen)
        if found is None:
            self._seen = len(self._buffer)
            return False
        token = found[0]
        if token == b'"':
            self._seen = found.start()
            return False
        self._seen = found.end()
        if token in (b"{", b"["):
            self._open(token, found.start())
        elif token in (b"}", b"]"):
            self._close(token, found.end(), rows)
        else:
            self._name = token
        return True

    def _open(self, token: bytes, start: int) -> None:
        name, self._name = self._name, b""
        self._depth += 1
        if token == b"[" and self._list_depth:
            self._in_vector = name == VECTOR
        elif token == b"[" and name in LISTS:
            self._keep(start + 1)
            self._list_depth, self._giving = self._depth, self.rows == 0
        elif token == b"{" and self._depth == self._list_depth + 1:
            self._done = start

    def _close(self, token: bytes, end: int, rows: list[bytes]) -> None:
        if token == b"}" and self._list_depth and self._depth == self._list_depth + 1:
            if self._giving:
                rows.append(self._buffer[self._done : end])
                self.rows += 1
            self._done = end
        elif token == b"]" and self._depth == self._list_depth:
            self._done, self._list_depth = end - 1, 0
        self._depth -= 1
