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

_TOKEN: Final = re.compile(rb'("(?:[^"\\]|\\.)*+")|(\{)|(\[)|(\})|(\])|"', re.DOTALL)
"""A whole string or a bracket, numbered; a bare quote begins a string that is not whole yet."""
_STRING, _OBJECT, _LIST, _OBJECT_END = 1, 2, 3, 4


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
        rest = self._buffer[self._done :]
        self._buffer = rest + chunk if rest else chunk
        self._seen -= self._done
        self._done = 0
        rows = self._scan()
        self.rows += len(rows)
        if not self._list_depth:
            self._keep(self._seen)
        elif self._depth == self._list_depth or not self._giving:
            self._done = self._seen
        return rows

    def envelope(self) -> bytes:
        """The document without its rows. Ask when the stream has ended."""
        return b"".join([*self._envelope, self._buffer[self._done :]])

    def _keep(self, end: int) -> None:
        self._envelope.append(self._buffer[self._done : end])
        self._done = end

    def _scan(self) -> list[bytes]:
        """Looks at every token that is whole. Each costs time: state is kept in local names."""
        buffer, search = self._buffer, _TOKEN.search
        seen, depth, name = self._seen, self._depth, self._name
        rows: list[bytes] = []
        while True:
            if self._in_vector:
                seen = self._pass_vector(seen)
                if self._in_vector:
                    break
            found = search(buffer, seen)
            if found is None:
                seen = len(buffer)
                break
            kind = found.lastindex
            if kind is None:
                seen = found.start()
                break
            seen = found.end()
            if kind == _STRING:
                name = found[0]
            elif kind == _OBJECT:
                depth += 1
                if self._list_depth and depth == self._list_depth + 1:
                    self._done = seen - 1
            elif kind == _LIST:
                depth += 1
                if self._list_depth:
                    self._in_vector = name == VECTOR
                elif name in LISTS:
                    self._keep(seen)
                    self._list_depth, self._giving = depth, not self.rows + len(rows)
                name = b""
            elif kind == _OBJECT_END:
                if self._list_depth and depth == self._list_depth + 1:
                    if self._giving:
                        rows.append(buffer[self._done : seen])
                    self._done = seen
                depth -= 1
            else:
                if depth == self._list_depth:
                    self._done, self._list_depth = seen - 1, 0
                depth -= 1
        self._seen, self._depth, self._name = seen, depth, name
        return rows

    def _pass_vector(self, seen: int) -> int:
        """Where to go on after the numbers of a vector, which are no tokens."""
        find = self._buffer.find
        end = find(b"]", seen)
        stop = end if end >= 0 else len(self._buffer)
        # What a user wrote under the same name may hold more than numbers: texts, or lists. Objects
        # without a name in quotes are empty, and harmless.
        plain = find(b'"', seen, stop) < 0 and find(b"[", seen, stop) < 0
        self._in_vector = plain and end < 0
        return stop if plain else seen
