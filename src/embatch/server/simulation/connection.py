"""A connection that can be broken on purpose, with a reset."""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from embatch.server.connection import Connection

LINE_KEY: Final = "embatch.line"
"""Where a request's scope holds its connection."""
FLUSH_S: Final = 2.0
"""Seconds for which a break waits until the client has what was sent before it."""
_LOOK_S: Final = 0.005
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class BreakableConnection(Connection):
    """A connection that its own requests can break."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as its base
        """A client has come."""
        app: Any = self.app

        async def with_line(scope: Scope, receive: Receive, send: Send) -> None:
            scope[LINE_KEY] = self
            await app(scope, receive, send)

        self.app = with_line
        super().connection_made(transport)

    @property
    def gone(self) -> bool:
        """The client is not there any more."""
        return self.transport.is_closing()

    async def reset(self) -> None:
        """Breaks the connection with a TCP reset: nothing is answered any more."""
        await self.flush()
        self._silence()
        with contextlib.suppress(OSError):
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    async def hang_up(self) -> None:
        """Ends the connection with a goodbye, in the middle of an answer."""
        await self.flush()
        self._silence()
        self.transport.close()

    async def flush(self) -> None:
        """Waits until the client's side has taken what was sent, for some time."""
        deadline = asyncio.get_running_loop().time() + FLUSH_S
        while not self.gone and self._unsent():
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_LOOK_S)

    def _silence(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _unsent(self) -> int:
        in_kernel = fcntl.ioctl(self._socket().fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        return int(self.transport.get_write_buffer_size() + struct.unpack("i", in_kernel)[0])

    def _socket(self) -> Any:
        return self.transport.get_extra_info("socket")
