"""One connection: heads must come in time, and what is no HTTP gets an answer all the same."""

import asyncio
import contextlib
import resource
import socket
import struct
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from embatch.server.bodies import SEND_STALL_S
from embatch.server.wire import ApiError, invalid

HEAD_S: Final = 20.0
"""Seconds for the head of a request, from the connection's or the head's first byte on."""
CROWDED_HEAD_S: Final = 2.0
"""The same while three quarters of all connections are taken: idle ones make way for others."""
LEFTOVER_S: Final = 30.0
"""Seconds for which a client may go on to send a body that was answered already."""
LINGER_S: Final = 1.0
"""Seconds for which a refused client's bytes are read on: else it may never see its answer."""
MAX_CONNECTIONS: Final = 4096
"""Connections at a time, where the process may open files for so many."""
RESERVED_FILES: Final = 256
"""Descriptors for databases, batches and models."""
FILES_A_CONNECTION: Final = 2
"""A connection needs its socket and, while it uploads or downloads, a file."""

UNSENT_S: Final = SEND_STALL_S + 1.0
"""Seconds for which an answer may wait in the server for its reader, closed or not; by then the
call itself has been stopped."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_PHRASES: Final = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}


def raise_file_limit() -> None:
    """Lets this process open the files that `MAX_CONNECTIONS` need, or all that it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = RESERVED_FILES + FILES_A_CONNECTION * MAX_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Connections that this process can have at a time, each with a file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (soft - RESERVED_FILES) // FILES_A_CONNECTION))


class Connection(H11Protocol):
    """uvicorn's connection, with limits in time."""

    _deadline: asyncio.TimerHandle | None = None
    _waiting: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as its base
        """A client has come."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing pauses while bytes are unsent
        if len(self.connections) > most_connections():
            self._refuse(ApiError(503, "The server has too many connections. Try again later."))
            return
        self._limit(self._head_s())

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unlimit()
        self._sent()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Bytes wait for the client to take them; a closed connection waits for that too."""
        super().pause_writing()
        self._sent()
        self._waiting = self.loop.call_later(UNSENT_S, self._drop)

    def resume_writing(self) -> None:
        """The client has taken all."""
        self._sent()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if not self._refused:
            super().data_received(data)
        if self._refused:
            return
        if self.conn.their_state is not h11.IDLE:
            if self.conn.our_state is not h11.DONE:
                self._unlimit()
        elif self._deadline is None and self.conn.our_state is h11.IDLE:
            self._limit(self._head_s())

    def on_response_complete(self) -> None:
        """An answer is sent; the client may still be sending what it was for."""
        self._unlimit()
        super().on_response_complete()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._limit(LEFTOVER_S)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(invalid(msg))

    def _head_s(self) -> float:
        crowded = len(self.connections) > most_connections() * 3 // 4
        return min(HEAD_S, CROWDED_HEAD_S) if crowded else HEAD_S

    def _limit(self, seconds: float) -> None:
        self._unlimit()
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _unlimit(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.conn.our_state is h11.IDLE:
            self._refuse(ApiError(408, "The request's head came too slowly."))
        elif self.transport.get_write_buffer_size():
            self._drop()
        else:
            self.transport.close()

    def _sent(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _drop(self) -> None:
        """Ends the connection now, with a reset: close() would wait for its reader."""
        with contextlib.suppress(OSError):  # the client may be gone by now
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            )
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answers with an error, if nothing was answered yet, and closes."""
        self._refused = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self._answering():
            self.transport.close()
            return
        body = error.body()
        head: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json; charset=UTF-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events: tuple[Any, ...] = (
            h11.Response(status_code=error.code, headers=head, reason=_PHRASES[error.code]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            # The call that may be under way must not answer any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self._limit(LINGER_S)

    def _answering(self) -> bool:
        return (
            self.cycle is not None
            and self.cycle.response_started
            and (not self.cycle.response_complete)
        )
