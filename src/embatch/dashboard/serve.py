"""Runs a dashboard on a socket until a signal ends it."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Final

from embatch.dashboard.app import Dashboard
from embatch.listening import Server, bind

GRACE_S: Final = 5
"""Seconds for which the end waits for requests in flight."""


def serve(dashboard: Dashboard, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answers on `bound` until SIGINT or SIGTERM; a second one ends the process at once.

    `ready` is called once it accepts connections.
    """
    _Server(dashboard).run_on(bound, ready=ready)


@contextlib.contextmanager
def serving(dashboard: Dashboard, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Answers from a thread of this process; gives the URL."""
    with _Server(dashboard).running_on(bind(host, port)) as url:
        yield url


class _Server(Server):
    """A server that ends its streams first."""

    def __init__(self, dashboard: Dashboard) -> None:
        super().__init__(
            dashboard.app,
            http="h11",
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams, then what is in flight."""
        self._dashboard.live.stop()
        await super().shutdown(sockets)
