"""Runs the application on a socket until a signal ends it."""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

from embatch.listening import Server, bind
from embatch.server.app import create_app
from embatch.server.connection import raise_file_limit
from embatch.server.service import Service

GRACE_S: Final = 10
"""Seconds for which the end waits for requests in flight."""
KEEP_ALIVE_S: Final = 75
"""Seconds for which an idle connection is kept."""
SWITCH_S: Final = 0.0005
"""How long a busy thread may keep the others waiting: polls go before the spelling of results."""


def serve(service: Service, bound: socket.socket, *, ready: Callable[[], None]) -> bool:
    """Answers on `bound` until SIGINT or SIGTERM; `ready` is called once it accepts connections.

    Finishes requests in flight and the slice in hand; False when that took too long. A second
    signal ends the process at once.
    """
    sys.setswitchinterval(SWITCH_S)
    raise_file_limit()
    server = _server(service)
    service.start()
    try:
        server.run_on(bound, ready=ready)
    finally:
        ended = service.stop()
    return ended


@contextlib.contextmanager
def serving(service: Service, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Answers from a thread of this process; gives the URL. Stops the service in the end."""
    bound = bind(host, port)
    server = _server(service)
    service.start()
    try:
        with server.running_on(bound) as url:
            yield url
    finally:
        service.stop()


def _server(service: Service) -> Server:
    return Server(
        create_app(service),
        http=service.weather.connection,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
