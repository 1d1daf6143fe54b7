"""The HTTP server under the fake cloud: threads, keep-alive, and connections broken on purpose."""

import contextlib
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from embatch.testing.cloud.answers import (
    PIECE_BYTES,
    Answer,
    ApiError,
    ClientGoneError,
    FileSpan,
    Request,
)
from embatch.testing.cloud.faults import Fault

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SENDFILE_BYTES = 8 << 20


class BreakConnectionError(Exception):
    """The connection ends here, without an answer."""


class Reshaped:
    """How an answer's way back is spoiled."""

    def __init__(self) -> None:
        self.trickle: Fault | None = None
        self.truncate: Fault | None = None


Answerer = Callable[[Request, Reshaped], Answer]


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version = "ESF"
    sys_version = ""
    server: "CloudServer"

    def _serve(self) -> None:
        request = Request.parse(self.command, self.path, self.headers, cast(Any, self.rfile))
        spoiled = Reshaped()
        try:
            try:
                answer = self.server.answerer(request, spoiled)
            except ApiError as error:
                answer = error.answer()
            request.body.drain()
            self._send(answer, spoiled)
        except BreakConnectionError:
            self.server.reset(self.connection)
            self.close_connection = True
        except (ClientGoneError, ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # noqa: BLE001 # a thread's outer edge: recorded, the owner raises it
            self.server.crashes.append(traceback.format_exc())
            self.close_connection = True
            with contextlib.suppress(OSError):
                self._send(ApiError(500, "The fake cloud itself failed.").answer(), Reshaped())

    def __getattr__(self, name: str) -> Any:
        # The base looks for do_GET, do_PUT, …: every method is served alike.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _send(self, answer: Answer, spoiled: Reshaped) -> None:
        headers = {"Content-Length": str(answer.size_bytes), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} {self.responses.get(answer.status, ('-',))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"Date: {self.date_time_string()}")
        if self.close_connection:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if spoiled.truncate is not None:
            self._send_truncated(head, answer, spoiled.truncate)
        elif spoiled.trickle is not None:
            self.connection.sendall(head)
            self._send_trickling(answer, spoiled.trickle)
        else:
            self._send_whole(head, answer)

    def _send_whole(self, head: bytes, answer: Answer) -> None:
        for part in answer.parts:
            if isinstance(part, bytes):
                head += part
                continue
            self.connection.sendall(head)
            head = b""
            self._send_file(part)
        if head:
            self.connection.sendall(head)

    def _send_file(self, span: FileSpan) -> None:
        at, end = span.start, span.start + span.size_bytes
        with span.path.open("rb") as file:
            while at < end:
                sent = os.sendfile(
                    self.connection.fileno(), file.fileno(), at, min(end - at, _SENDFILE_BYTES)
                )
                if sent == 0:
                    raise ConnectionError("the file became shorter while it was sent")
                at += sent

    def _send_truncated(self, head: bytes, answer: Answer, fault: Fault) -> None:
        left = int(fault.arg("at_byte"))
        self.connection.sendall(head)
        for piece in _pieces(answer, PIECE_BYTES):
            self.connection.sendall(piece[:left])
            left -= len(piece)
            if left < 0:
                self.close_connection = True
                if fault.arg("reset"):
                    raise BreakConnectionError
                return

    def _send_trickling(self, answer: Answer, fault: Fault) -> None:
        for piece in _pieces(answer, int(fault.arg("bytes"))):
            self.connection.sendall(piece)
            if self.server.stopping.wait(fault.arg("pause_s")):
                raise BreakConnectionError

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base's name
        """Nothing is logged: what happened is in the bill."""


def _pieces(answer: Answer, size: int) -> Any:
    for part in answer.parts:
        if isinstance(part, bytes):
            for at in range(0, len(part), size):
                yield part[at : at + size]
            continue
        with part.path.open("rb") as file:
            file.seek(part.start)
            left = part.size_bytes
            while left:
                piece = file.read(min(size, left))
                left -= len(piece)
                yield piece


class CloudServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 and answers with `answerer`, a thread for each connection."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 256

    def __init__(self, port: int, answerer: Answerer) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        self.answerer = answerer
        self.crashes: list[str] = []
        """Tracebacks of failures of the fake cloud itself."""
        self.stopping = threading.Event()
        self._live: set[socket.socket] = set()
        self._to_reset: set[socket.socket] = set()
        self._sockets_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="fake-cloud"
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Breaks all connections and waits for their threads."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        with self._sockets_lock:
            live = list(self._live)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def reset(self, connection: socket.socket) -> None:
        """Has the connection end with a reset instead of a goodbye."""
        with self._sockets_lock:
            self._to_reset.add(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remembers the connection, then starts its thread."""
        with self._sockets_lock:
            self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection, with a reset where one was asked for."""
        with self._sockets_lock:
            self._live.discard(request)
            reset = request in self._to_reset
            self._to_reset.discard(request)
        if not reset:
            super().shutdown_request(request)
            return
        with contextlib.suppress(OSError):
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke outside a request is not a failure of the cloud."""
