"""What a server leaves behind when it ends: nothing, whatever its clients do."""

import gc
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from embatch.errors import ConfigError
from embatch.listening import Server, bind

MUCH = 64 << 20
_Message = MutableMapping[str, Any]


async def flood(
    _scope: _Message,
    _receive: Callable[[], Awaitable[_Message]],
    send: Callable[[_Message], Awaitable[None]],
) -> None:
    """An application that answers with more than any buffer takes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(MUCH), "more_body": False})


@pytest.mark.parametrize("asked", [b"", b"GET /ha", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_server_that_ends_closes_what_is_open(asked: bytes) -> None:
    """A connection that asked for nothing, for half of something, and one that reads no answer."""
    bound = bind("127.0.0.1", 0)
    with socket.create_connection(bound.getsockname(), timeout=10) as client:
        with Server(flood, http="h11", timeout_graceful_shutdown=1).running_on(bound):
            client.sendall(asked)
            if asked.endswith(b"\r\n\r\n"):
                assert client.recv(9) == b"HTTP/1.1 "
        assert ended(client)
    gc.collect()  # an unclosed transport would fail this test


def ended(client: socket.socket) -> bool:
    """The other side has closed the connection, in whatever way."""
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_port_that_another_listens_on_is_refused_at_once() -> None:
    """With the port, and what to give instead."""
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .*give another --host or --port"):
            bind("127.0.0.1", port)
