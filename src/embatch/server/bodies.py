"""Bodies on their way in and out: bounded, streamed, never held whole beyond a limit."""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import anyio
import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from embatch.server.wire import ApiError, parse_json, too_large

HELD_BYTES: Final = 1 << 20
"""A body up to this size stays in memory, a larger one goes to a temporary file."""
PIECE_BYTES: Final = 256 << 10
"""Files are sent in pieces of this size."""
BODY_GRACE_S: Final = 60.0
BODY_BYTES_PER_S: Final = 4096
"""A body must come at this rate on average, after the grace."""
SEND_STALL_S: Final = 120.0
"""A reader that takes nothing for so long is dropped."""

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. ApiError 408 for one that comes too slowly.

    Raises ClientDisconnect when the client goes away.
    """
    begun, received = anyio.current_time(), 0
    stream = request.stream()
    while True:
        deadline = begun + BODY_GRACE_S + received / BODY_BYTES_PER_S
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(
                408, "The request's body came too slowly.", headers={"Connection": "close"}
            ) from None
        received += len(piece)
        if piece:
            yield piece


def declared_bytes(request: Request) -> int | None:
    """`Content-Length`; None when the body comes in chunks."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else None


@asynccontextmanager
async def held_body(request: Request, limit_bytes: int) -> AsyncIterator[BinaryIO]:
    """The whole body, from its start; a large one lies on the disk. ApiError 400 over the limit."""
    if (declared_bytes(request) or 0) > limit_bytes:
        raise too_large(limit_bytes)
    received = 0
    with tempfile.SpooledTemporaryFile(max_size=HELD_BYTES) as body:
        async for piece in pieces_of(request):
            received += len(piece)
            if received > limit_bytes:
                raise too_large(limit_bytes)
            if received > HELD_BYTES:
                await to_thread.run_sync(body.write, piece)
            else:
                body.write(piece)
        body.seek(0)
        yield body  # type: ignore[misc] # a BinaryIO in all but name


def read_json(body: BinaryIO) -> dict[str, Any]:
    """A held body as JSON."""
    return parse_json(body.read())


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer with a JSON body; `value` may be JSON already."""
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return Response(
        raw, status_code=status, headers=headers, media_type="application/json; charset=UTF-8"
    )


def error_response(error: ApiError) -> Response:
    """A google.rpc error as an answer."""
    return json_response(error.body(), status=error.code, headers=error.headers)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an open file."""

    file: BinaryIO
    start: int
    size_bytes: int


class SpanResponse(Response):
    """An answer in parts, some of them stretches of a file, which is read as it is sent.

    Closes the file, whatever becomes of the answer.
    """

    def __init__(
        self,
        parts: Sequence[bytes | Span],
        file: BinaryIO,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        size = sum(len(part) if isinstance(part, bytes) else part.size_bytes for part in parts)
        self.status_code = status
        self.background = None
        self.body = b""
        self.init_headers({**(headers or {}), "Content-Length": str(size)})
        self._parts = parts
        self._file = file

    def discard(self) -> None:
        """Closes the file of an answer that is not sent."""
        self._file.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        del receive
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if scope["method"] != "HEAD":
                for part in self._parts:
                    await self._send_part(part, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._file.close()

    async def _send_part(self, part: bytes | Span, send: Send) -> None:
        if isinstance(part, bytes):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            return
        at, end = part.start, part.start + part.size_bytes
        while at < end:
            piece = await to_thread.run_sync(
                os.pread, part.file.fileno(), min(PIECE_BYTES, end - at), at
            )
            if not piece:
                raise OSError("the file became shorter while it was sent")
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})


def file_response(file: BinaryIO, headers: dict[str, str], wanted: str | None) -> Response:
    """A file, or the one range of it that the Range header asks for. Closes the file in the end."""
    size = os.fstat(file.fileno()).st_size
    headers = {"Accept-Ranges": "bytes", **headers}
    caught = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if caught is None or not (caught[1] or caught[2]):
        return SpanResponse([Span(file, 0, size)], file, headers=headers)
    if caught[1]:
        start = int(caught[1])
        end = min(int(caught[2]), size - 1) if caught[2] else size - 1
        if caught[2] and int(caught[2]) < start:
            return SpanResponse([Span(file, 0, size)], file, headers=headers)
    else:
        start, end = max(0, size - int(caught[2])), size - 1
    if start > end:
        file.close()
        return error_response(
            ApiError(
                416,
                f"Range: the file has {size} bytes.",
                headers={"Content-Range": f"bytes */{size}"},
            )
        )
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return SpanResponse([Span(file, start, end - start + 1)], file, status=206, headers=headers)
