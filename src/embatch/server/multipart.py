"""A multipart/related upload, taken apart as it comes: JSON first, then the file's bytes. Pure."""

import re
from typing import Any, Final

from embatch.server.wire import invalid, parse_json

_MAX_HEAD_BYTES: Final = 1 << 16
"""The JSON part and the headers of both parts together."""
_BOUNDARY: Final = re.compile(r"""boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_TYPE: Final = re.compile(rb"^content-type:[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)


class Multipart:
    """Give it the pieces of a body; it gives back those that belong to the file.

    The last piece of the file is known at the end only, so as many bytes as the closing boundary
    has are held back.
    """

    def __init__(self, content_type: str) -> None:
        """Raises ApiError 400 for a content type without a boundary."""
        caught = _BOUNDARY.search(content_type)
        if not content_type.lower().startswith("multipart/") or caught is None:
            raise invalid("Content-Type: multipart/related with a boundary is required.")
        self._boundary = b"--" + (caught[1] or caught[2]).encode("latin-1")
        self._head = bytearray()
        self._held = bytearray()
        self.asked: dict[str, Any] | None = None
        """The JSON part, once it has come."""
        self.mime_type = ""
        """Content type of the second part."""

    def feed(self, piece: bytes) -> bytes:
        """Bytes of the file that are certain by now."""
        if self.asked is None:
            self._head += piece
            begin = self._read_head()
            if begin < 0:
                if len(self._head) > _MAX_HEAD_BYTES:
                    raise _malformed()
                return b""
            piece = bytes(self._head[begin:])
            self._head.clear()
        self._held += piece
        keep = len(self._boundary) + _TAIL_BYTES
        certain = bytes(self._held[:-keep])
        del self._held[:-keep]
        return certain

    def finish(self) -> bytes:
        """The last bytes of the file. ApiError 400 when the body broke off."""
        end = self._held.rfind(b"\r\n" + self._boundary + b"--")
        if self.asked is None or end < 0:
            raise _malformed()
        return bytes(self._held[:end])

    def _read_head(self) -> int:
        """Where the second part's bytes begin; -1 while that has not come."""
        head = bytes(self._head)
        first = head.find(self._boundary)
        second = head.find(b"\r\n" + self._boundary, first + len(self._boundary))
        if first < 0 or second < 0:
            return -1
        first_body = head.find(b"\r\n\r\n", first)
        second_headers = second + 2 + len(self._boundary)
        second_body = head.find(b"\r\n\r\n", second_headers)
        if second_body < 0:
            return -1
        if not 0 <= first_body <= second:
            raise _malformed()
        self.asked = parse_json(head[first_body + 4 : second])
        kind = _TYPE.search(head[second_headers:second_body])
        self.mime_type = kind[1].decode("latin-1").strip() if kind else ""
        return second_body + 4


_TAIL_BYTES: Final = 1024
"""What may stand around the closing boundary: line ends and an epilogue."""


def _malformed() -> Exception:
    return invalid("The body must have two parts: JSON, then the file's bytes.")
