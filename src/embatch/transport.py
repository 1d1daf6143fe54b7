"""Performs HTTP requests, in a thread or on an event loop: the only import of the HTTP library.

Nothing is raised for what a network does: a request that got no answer gives `Lost`, which says
whether the service may have seen it. Credentials are added at the last moment and stay out of
every value that a traceback could show.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import httpcore2
import httpx2

from embatch.errors import ConfigError, InputError, InvalidRequestError

CONNECT_TIMEOUT_S: Final = 15.0
DEFAULT_TIMEOUT_S: Final = 120.0
"""Longest silence of a service that is taken for life."""

LONG_BODY_BYTES: Final = 1 << 20
"""A body of this size is read from the connection itself."""
READ_BYTES: Final = 1 << 18
"""Of a long body at once: it stays in the processor's cache."""

_FAILURES: Final = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.CookieConflict,
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
)
_UNSENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_MISTAKEN: Final = (httpx2.InvalidURL, httpx2.UnsupportedProtocol)


class Authorization(Protocol):
    """What proves who is calling. Its repr shows nothing."""

    def headers(self) -> Mapping[str, str]:
        """Headers to send. Reads what is held; never calls out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSlice:
    """A stretch of a local file, read when it is sent."""

    path: Path
    start: int
    """First byte."""
    size: int
    """Bytes."""

    def read(self) -> bytes:
        """The bytes; InputError when the file does not hold them any more."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                found = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(found) != self.size:
            raise InputError(
                f"{self.path} became shorter while it was uploaded: try again once nothing writes "
                "to it"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request."""

    method: str
    url: str = field(repr=False)
    """Not shown: the URL of a running upload is a right to write."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSlice | None = field(default=None, repr=False)
    authorization: Authorization | None = field(default=None, repr=False)
    private: bool = False
    """Its URL is a secret: the HTTP library must not log it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No answer, or only a part of one."""

    sent: bool
    """The service may have acted on the request."""
    reason: str
    """What happened, in words without content."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """An answer whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    response: httpx2.Response = field(repr=False)
    sync_chunks: Iterator[bytes] | None = field(default=None, repr=False)
    async_chunks: AsyncIterator[bytes] | None = field(default=None, repr=False)


def _lost(error: Exception) -> Lost:
    if isinstance(error, _MISTAKEN):
        raise ConfigError("the base URL is not one that HTTP can reach: check it") from None
    return Lost(sent=not isinstance(error, _UNSENT), reason=_WORDS.get(type(error), "broke off"))


_WORDS: Final[Mapping[type[Exception], str]] = {
    httpx2.ConnectError: "the connection was refused or the host not found",
    httpx2.ConnectTimeout: "connecting took too long",
    httpx2.PoolTimeout: "no connection became free",
    httpx2.ReadTimeout: "no answer came in time",
    httpx2.WriteTimeout: "sending took too long",
    httpx2.ReadError: "the connection broke while the answer was awaited",
    httpx2.WriteError: "the connection broke while sending",
    httpx2.RemoteProtocolError: "the connection closed before the answer was whole",
    httpcore2.ReadTimeout: "no answer came in time",
    httpcore2.ReadError: "the connection broke while the answer was awaited",
}


def _headers(headers: httpx2.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _timeout(timeout_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))


def _parts(request: Request) -> tuple[dict[str, str], bytes | None]:
    body = request.body.read() if isinstance(request.body, FileSlice) else request.body
    secret = request.authorization.headers() if request.authorization else {}
    return {**request.headers, **secret}, body


async def _aparts(request: Request) -> tuple[dict[str, str], bytes | None]:
    """The same, without holding up the event loop for the disk."""
    if isinstance(request.body, FileSlice):
        return await asyncio.to_thread(_parts, request)
    return _parts(request)


def _chunks(answer: httpx2.Response, timeout_s: float) -> Iterator[bytes]:
    """The body in pieces.

    The HTTP library copies a body several times, 64 KiB at once. Of a long one it gives what it
    read together with the head; the rest comes from the connection, which is not used again.
    """
    size = answer.headers.get("content-length", "")
    connection = answer.extensions.get("network_stream")
    as_it_is = not {"content-encoding", "transfer-encoding"} & answer.headers.keys()
    long = size.isdigit() and int(size) >= LONG_BODY_BYTES
    if not (long and as_it_is and connection and answer.http_version == "HTTP/1.1"):
        yield from answer.iter_bytes()
        return
    left = int(size)
    parsed = answer.iter_raw()  # it closes the answer when it goes
    chunk = next(parsed, b"")
    while chunk:
        yield chunk
        left -= len(chunk)
        if left <= 0:
            return
        chunk = connection.read(min(READ_BYTES, left), timeout=timeout_s)
    raise httpx2.RemoteProtocolError("the connection closed before the answer was whole")


_PRIVATE: Final = ContextVar("embatch_private_request", default=False)


class _WithoutUploads(logging.Filter):
    """Keeps URLs that are rights, such as that of a running upload, out of the HTTP library's
    logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _PRIVATE.get() and "upload_id=" not in record.getMessage()


_WITHOUT_UPLOADS: Final = _WithoutUploads()
_LOGGERS: Final = ("httpx2", "httpcore2.http11", "httpcore2.http2")


@contextmanager
def _named(request: Request) -> Iterator[None]:
    """While the HTTP library has the request in hand: whether it may log its URL."""
    before = _PRIVATE.set(request.private)
    try:
        yield
    finally:
        _PRIVATE.reset(before)


def _hush() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_WITHOUT_UPLOADS)


class _Closable:
    """Knows whether it was closed. The HTTP library's own word is lost when calls are under way."""

    _closed = False

    def require_open(self) -> None:
        """Raises InvalidRequestError after close()."""
        if self._closed:
            raise InvalidRequestError(
                "the client is closed: open another, or make its calls before its `with` ends"
            )


class Transport(_Closable):
    """HTTP in the calling thread. Safe to use from several threads."""

    def __init__(
        self, *, timeout_s: float = DEFAULT_TIMEOUT_S, inner: httpx2.BaseTransport | None = None
    ) -> None:
        _hush()
        self._client = httpx2.Client(timeout=_timeout(timeout_s), transport=inner)
        self._timeout_s = timeout_s

    def send(self, request: Request) -> Response | Lost:
        """The whole answer to `request`."""
        self.require_open()
        headers, body = _parts(request)
        try:
            with _named(request):
                answer = self._client.request(
                    request.method, request.url, headers=headers, content=body
                )
        except (*_FAILURES, *_MISTAKEN) as error:
            return _lost(error)
        except RuntimeError:
            self.require_open()  # closed from another side a moment ago, nothing was sent
            raise
        return Response(
            status=answer.status_code, headers=_headers(answer.headers), body=answer.content
        )

    def open(self, request: Request) -> Stream | Lost:
        """The answer's head; its body is read by `read` and given back by `shut`."""
        self.require_open()
        headers, body = _parts(request)
        try:
            with _named(request):
                answer = self._client.send(
                    self._client.build_request(
                        request.method, request.url, headers=headers, content=body
                    ),
                    stream=True,
                )
        except (*_FAILURES, *_MISTAKEN) as error:
            return _lost(error)
        except RuntimeError:
            self.require_open()  # closed from another side a moment ago, nothing was sent
            raise
        return Stream(
            status=answer.status_code,
            headers=_headers(answer.headers),
            response=answer,
            sync_chunks=_chunks(answer, self._timeout_s),
        )

    def read(self, stream: Stream) -> bytes | Lost:
        """The next bytes of a body, empty at its end."""
        if stream.sync_chunks is None:
            raise TypeError("this stream was opened on an event loop")
        try:
            return next(stream.sync_chunks, b"")
        except _FAILURES as error:
            return _lost(error)

    def shut(self, stream: Stream) -> None:
        """Gives the stream's connection back. Safe to call twice."""
        stream.response.close()

    def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._closed = True
        self._client.close()


class AsyncTransport(_Closable):
    """HTTP on an event loop."""

    def __init__(
        self,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        _hush()
        self._client = httpx2.AsyncClient(timeout=_timeout(timeout_s), transport=inner)

    async def send(self, request: Request) -> Response | Lost:
        """The whole answer to `request`."""
        self.require_open()
        headers, body = await _aparts(request)
        try:
            with _named(request):
                answer = await self._client.request(
                    request.method, request.url, headers=headers, content=body
                )
        except (*_FAILURES, *_MISTAKEN) as error:
            return _lost(error)
        except RuntimeError:
            self.require_open()  # closed from another side a moment ago, nothing was sent
            raise
        return Response(
            status=answer.status_code, headers=_headers(answer.headers), body=answer.content
        )

    async def open(self, request: Request) -> Stream | Lost:
        """The answer's head; its body is read by `read` and given back by `shut`."""
        self.require_open()
        headers, body = await _aparts(request)
        try:
            with _named(request):
                answer = await self._client.send(
                    self._client.build_request(
                        request.method, request.url, headers=headers, content=body
                    ),
                    stream=True,
                )
        except (*_FAILURES, *_MISTAKEN) as error:
            return _lost(error)
        except RuntimeError:
            self.require_open()  # closed from another side a moment ago, nothing was sent
            raise
        return Stream(
            status=answer.status_code,
            headers=_headers(answer.headers),
            response=answer,
            async_chunks=answer.aiter_bytes(),
        )

    async def read(self, stream: Stream) -> bytes | Lost:
        """The next bytes of a body, empty at its end."""
        if stream.async_chunks is None:
            raise TypeError("this stream was opened in a thread")
        try:
            return await anext(stream.async_chunks, b"")
        except _FAILURES as error:
            return _lost(error)

    async def shut(self, stream: Stream) -> None:
        """Gives the stream's connection back. Safe to call twice."""
        await stream.response.aclose()

    async def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._closed = True
        await self._client.aclose()
