"""Runs the application on a socket until a signal ends it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import uvicorn

from embatch.errors import ConfigError
from embatch.server.app import create_app
from embatch.server.connection import raise_file_limit
from embatch.server.service import Service

GRACE_S: Final = 10
"""Seconds for which the end waits for requests in flight."""
KEEP_ALIVE_S: Final = 75
"""Seconds for which an idle connection is kept."""
BACKLOG: Final = 512
SWITCH_S: Final = 0.0005
"""How long a busy thread may keep the others waiting: polls go before the spelling of results."""


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, not listening yet; port 0 takes a free one. ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its number: asyncio sets TCP_NODELAY on no other socket.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({reason}): give another --host or --port"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a socket can be reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, bound: socket.socket, *, ready: Callable[[], None]) -> bool:
    """Answers on `bound` until SIGINT or SIGTERM; `ready` is called once it accepts connections.

    Finishes requests in flight and the slice in hand; False when that took too long. A second
    signal ends the process at once.
    """
    sys.setswitchinterval(SWITCH_S)
    raise_file_limit()
    server = _Server(_config(service), ready)
    service.start()
    try:
        asyncio.run(server.serve(sockets=[bound]))
    finally:
        ended = service.stop()
    return ended


@contextlib.contextmanager
def serving(service: Service, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Answers from a thread of this process; gives the URL. Stops the service in the end."""
    bound = bind(host, port)
    up = threading.Event()
    server = _Server(_config(service), up.set)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[bound]),))
    url = url_of(bound)
    service.start()
    thread.start()
    try:
        up.wait()
        yield url
    finally:
        server.should_exit = True
        thread.join()
        service.stop()


def _config(service: Service) -> uvicorn.Config:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        # It would log targets and tracebacks, which hold keys and texts; the edge logs for us.
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    return uvicorn.Config(
        create_app(service),
        http=service.weather.connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which ends without raising its signal again."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal ends the serving, the second the process."""
        if threading.current_thread() is not threading.main_thread():
            yield  # no signals come here
            return

        def heard(number: int, _frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + number)
            self.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, heard)
        yield
