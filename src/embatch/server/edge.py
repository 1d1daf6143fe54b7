"""The outermost layer: every request is timed, counted and logged; every failure is an answer."""

import errno
import logging
import time
from typing import Final

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embatch.errors import (
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.server.batches import unknown_batch
from embatch.server.bodies import SEND_STALL_S, error_response
from embatch.server.metrics import Metrics
from embatch.server.wire import ApiError, invalid

ROUTE_KEY: Final = "embatch.route"
"""Where the matched route leaves its template in the scope."""
UNROUTED: Final = "unknown"
CLIENT_GONE: Final = 499
"""Status in the log of a request whose client went away."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_log = logging.getLogger("embatch.server")
_access = logging.getLogger("embatch.server.access")


class Edge:
    """Wraps an application. Logs never hold texts, keys, queries or names."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(send)
        begun = time.perf_counter()
        try:
            await self._serve(scope, receive, exchange)
        finally:
            self._tell(scope, exchange, time.perf_counter() - begun)

    async def _serve(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        except _StalledError:
            exchange.status = CLIENT_GONE
            raise  # the server closes the connection
        except Exception as error:
            # Too late for another answer when one has begun: the server closes the connection.
            answer = failure(error, scope.get(ROUTE_KEY, UNROUTED))
            if exchange.started:
                raise
            await answer(scope, receive, exchange.send)

    def _tell(self, scope: Scope, exchange: "_Exchange", seconds: float) -> None:
        route = scope.get(ROUTE_KEY, UNROUTED)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.observe(route=route, method=method, status=exchange.status, seconds=seconds)
        _access.info(
            "%s %s %d %.1f ms %d bytes",
            method, route, exchange.status, seconds * 1000, exchange.sent_bytes,
        )  # fmt: skip


class _StalledError(Exception):
    """The client took nothing of its answer for too long."""


class _Exchange:
    """What goes back to one client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = CLIENT_GONE
        self.sent_bytes = 0
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
        self.sent_bytes += len(message.get("body", b""))
        try:
            with anyio.fail_after(SEND_STALL_S):
                await self._send(message)
        except TimeoutError:
            raise _StalledError from None


def translated(error: Exception) -> ApiError:
    """What a caller is told of a failure. Other messages may quote texts or name folders of this
    machine: they are not told.
    """
    match error:
        case ApiError():
            return error
        case NotFoundError():
            return unknown_batch()
        case InvalidRequestError():
            return invalid(str(error))
        case ProviderUnavailableError():
            return ApiError(503, "The server cannot store this now. Please try again later.")
        case OSError(errno=number) if number in _FULL:
            return ApiError(503, "The server's disk is full. Please try again later.")
        case _:
            return ApiError(500, "An internal error has occurred.")


def failure(error: Exception, route: str) -> Response:
    """The answer for a call that failed. What is our fault is logged, with messages of our own
    alone.
    """
    answer = translated(error)
    if answer.code >= 500:
        said = f": {error}" if isinstance(error, EmbatchError) else ""
        _log.error("a request to %s failed%s", route, said, exc_info=error)
    return error_response(answer)
