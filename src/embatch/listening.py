"""An application on a socket, in this process or in a thread of it, until it is told to end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import uvicorn

from embatch.errors import ConfigError

BACKLOG: Final = 512
"""Connections that wait to be taken."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on that address; port 0 takes a free one. ConfigError when it cannot.

    Connections wait until they are taken: another program that listens there is met here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its number: asyncio sets TCP_NODELAY on no other socket.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
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


class Server(uvicorn.Server):
    """uvicorn's server, which raises no signal again and leaves no connection behind."""

    def __init__(self, app: Any, **settings: Any) -> None:
        """`settings` are uvicorn's."""
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            # It would log targets and tracebacks, which hold keys and texts; applications log.
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [logging.NullHandler()], False
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                **settings,
            )
        )
        self._up = threading.Event()
        self._ready: Callable[[], None] = self._up.set

    def run_on(self, bound: socket.socket, *, ready: Callable[[], None]) -> None:
        """Answers until SIGINT or SIGTERM; a second one ends the process at once.

        `ready` is called once it accepts connections.
        """
        self._ready = ready
        asyncio.run(self.serve(sockets=[bound]))

    @contextlib.contextmanager
    def running_on(self, bound: socket.socket) -> Iterator[str]:
        """Answers from a thread of this process; gives the URL."""
        thread = threading.Thread(target=asyncio.run, args=(self.serve(sockets=[bound]),))
        thread.start()
        try:
            self._up.wait()
            yield url_of(bound)
        finally:
            self.should_exit = True
            thread.join()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what is in flight, and what came while that ended."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)  # transports close in the loop's next turn

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
