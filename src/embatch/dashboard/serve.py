"""Runs a dashboard on a socket until a signal ends it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import uvicorn

from embatch.dashboard.app import Dashboard
from embatch.errors import ConfigError

GRACE_S: Final = 5
"""Seconds for which the end waits for requests in flight."""
BACKLOG: Final = 256


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, not listening yet; port 0 takes a free one. ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)  # another that listens there is met here, not later
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({reason}): give another --host or --port; "
            "--port 0 takes a free one"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a socket can be reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(dashboard: Dashboard, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answers on `bound` until SIGINT or SIGTERM; a second one ends the process at once.

    `ready` is called once it accepts connections.
    """
    server = _Server(dashboard, ready)
    asyncio.run(server.serve(sockets=[bound]))


@contextlib.contextmanager
def serving(dashboard: Dashboard, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Answers from a thread of this process; gives the URL."""
    bound = bind(host, port)
    up = threading.Event()
    server = _Server(dashboard, up.set)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[bound]),))
    thread.start()
    try:
        up.wait()
        yield url_of(bound)
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends its streams first and raises no signal again."""

    def __init__(self, dashboard: Dashboard, ready: Callable[[], None]) -> None:
        super().__init__(_config(dashboard))
        self._dashboard = dashboard
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams, then what is in flight."""
        self._dashboard.live.stop()
        await super().shutdown(sockets)

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


def _config(dashboard: Dashboard) -> uvicorn.Config:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        # It would log addresses with their queries, and tracebacks; the application logs for us.
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    return uvicorn.Config(
        dashboard.app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
