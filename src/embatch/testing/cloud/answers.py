"""Requests as they came and answers as they go: JSON, spans of files, and Google's errors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qsl, unquote

import orjson

PIECE_BYTES: Final = 1 << 20
"""Bodies travel in pieces of this size; nothing larger is held."""

GRPC_STATUS: Final = {
    400: ("INVALID_ARGUMENT", 3),
    401: ("UNAUTHENTICATED", 16),
    403: ("PERMISSION_DENIED", 7),
    404: ("NOT_FOUND", 5),
    409: ("ALREADY_EXISTS", 6),
    412: ("FAILED_PRECONDITION", 9),
    429: ("RESOURCE_EXHAUSTED", 8),
    499: ("CANCELLED", 1),
    500: ("INTERNAL", 13),
    501: ("UNIMPLEMENTED", 12),
    502: ("UNAVAILABLE", 14),
    503: ("UNAVAILABLE", 14),
    504: ("DEADLINE_EXCEEDED", 4),
}


class ClientGoneError(Exception):
    """The client went away inside its own request."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A stretch of a file, sent without reading it into memory."""

    path: Path
    start: int
    size_bytes: int


@dataclass(slots=True)
class Answer:
    """What goes back: status, headers, and a body in parts."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes | FileSpan] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Length of the body."""
        return sum(len(part) if isinstance(part, bytes) else part.size_bytes for part in self.parts)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    return Answer(
        status,
        {"Content-Type": "application/json; charset=UTF-8", **(headers or {})},
        [orjson.dumps(value)],
    )


class ApiError(Exception):
    """An answer that is a google.rpc error."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: str | None = None,
        details: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or GRPC_STATUS[code][0]
        self.details = details
        self.headers = headers or {}

    def answer(self) -> Answer:
        """The error as it goes over the wire."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "status": self.status,
        }
        if self.details:
            error["details"] = self.details
        return json_answer({"error": error}, self.code, self.headers)


class Body:
    """The body of a request, read as it comes: by Content-Length or in chunks."""

    def __init__(self, stream: BinaryIO, headers: Message) -> None:
        self._stream = stream
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)
        self._ended = not self._chunked and self._left == 0

    def pieces(self) -> Iterator[bytes]:
        """The rest of the body, piece by piece. ClientGoneError when it breaks off."""
        while not self._ended:
            if self._chunked and self._left == 0:
                self._next_chunk()
                continue
            # read1: what has come so far, so that a broken upload keeps it.
            piece = self._stream.read1(min(self._left, PIECE_BYTES))  # type: ignore[attr-defined] # a BufferedReader
            if not piece:
                raise ClientGoneError
            self._left -= len(piece)
            if self._left == 0:
                if self._chunked:
                    self._stream.readline()
                else:
                    self._ended = True
            yield piece

    def _next_chunk(self) -> None:
        line = self._stream.readline(1024)
        if not line:
            raise ClientGoneError
        self._left = int(line.split(b";")[0], 16)
        if self._left == 0:
            while self._stream.readline(8192).strip():
                pass
            self._ended = True

    def read(self) -> bytes:
        """The rest of the body as one piece."""
        return b"".join(self.pieces())

    def drain(self) -> None:
        """Reads what is left and forgets it, so that the connection can go on."""
        for _ in self.pieces():
            pass


@dataclass(slots=True)
class Request:
    """One request."""

    method: str
    path: str
    """Decoded, without the query."""
    query: dict[str, str]
    headers: Message
    body: Body
    names: dict[str, str] = field(default_factory=dict)
    """What the route's pattern caught in the path."""

    @classmethod
    def parse(cls, method: str, target: str, headers: Message, stream: BinaryIO) -> "Request":
        """The request behind a request line."""
        path, _, query = target.partition("?")
        return cls(
            method,
            unquote(path),
            dict(parse_qsl(query, keep_blank_values=True)),
            headers,
            Body(stream, headers),
        )

    def json(self) -> Any:
        """The body as JSON; empty is {}. ApiError 400 for anything else."""
        raw = self.body.read()
        if not raw.strip():
            return {}
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            message = f"Invalid JSON payload received. {error.msg}"
            raise ApiError(400, message) from None
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid JSON payload received. Root element must be a message.")
        return value


_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


def file_answer(
    path: Path, headers: dict[str, str], range_header: str | None, method: str = "GET"
) -> Answer:
    """A file, or the range of it that was asked for."""
    size = path.stat().st_size
    headers = {"Accept-Ranges": "bytes", **headers}
    caught = _RANGE.match(range_header.strip()) if range_header else None
    if caught is None or not (caught[1] or caught[2]):
        answer = Answer(200, headers, [FileSpan(path, 0, size)])
    else:
        if caught[1]:
            start = int(caught[1])
            end = min(int(caught[2]), size - 1) if caught[2] else size - 1
        else:
            start, end = max(0, size - int(caught[2])), size - 1
        if start >= size or start > end:
            return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        answer = Answer(206, headers, [FileSpan(path, start, end - start + 1)])
    if method == "HEAD":
        answer.headers["Content-Length"] = str(answer.size_bytes)
        answer.parts = []
    return answer


@cache
def _snake(camel: str) -> str:
    return re.sub(r"([A-Z])", lambda caught: "_" + caught[1].lower(), camel)


def field_of(body: Any, camel: str, default: Any = None) -> Any:
    """A field of a JSON object under its camelCase or snake_case name; null counts as absent."""
    if not isinstance(body, dict):
        return default
    value = body.get(camel)
    if value is None:
        value = body.get(_snake(camel))
    return default if value is None else value


def objects_of(body: Any, camel: str) -> list[dict[str, Any]]:
    """A field that is a list of objects (one object stands for itself). ApiError 400 otherwise."""
    value = field_of(body, camel, [])
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ApiError(400, f"{camel}: a list of messages is required.")
    return listed
