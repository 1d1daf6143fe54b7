"""Long bodies come from the connection itself: whole, in order, and a loss is told as one."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embatch.transport import LONG_BODY_BYTES, Lost, Request, Transport

BODY = b"".join(b"%08d" % n for n in range((LONG_BODY_BYTES + 80_000) // 8))
ANSWERS = 2


@contextmanager
def server(*, told: int, sent: int) -> Iterator[str]:
    """Answers `sent` bytes of the body where `told` are announced; gives its URL."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        for _ in range(ANSWERS):
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {told}\r\n\r\n"
                connection.sendall(head.encode() + BODY[:sent])

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def read(transport: Transport, url: str) -> tuple[bytes, Lost | None]:
    """What came of a body, and how it broke off."""
    stream = transport.open(Request(method="GET", url=url))
    assert not isinstance(stream, Lost)
    got = b""
    while True:
        chunk = transport.read(stream)
        if isinstance(chunk, Lost) or not chunk:
            transport.shut(stream)
            return got, chunk if isinstance(chunk, Lost) else None
        got += chunk


def test_a_long_body_comes_whole_and_in_order() -> None:
    """Twice over one client: the next call finds a connection of its own."""
    transport = Transport()
    with server(told=len(BODY), sent=len(BODY)) as url:
        for _ in range(ANSWERS):
            assert read(transport, url) == (BODY, None)
    transport.close()


@pytest.mark.parametrize("sent", [10, 70_000, LONG_BODY_BYTES - 1, len(BODY) - 1])
def test_a_body_that_ends_early_is_lost(sent: int) -> None:
    """What came counts, and the end is no end."""
    transport = Transport()
    with server(told=len(BODY), sent=sent) as url:
        got, lost = read(transport, url)
    assert got == BODY[:sent]
    assert lost is not None
    assert lost.sent
    transport.close()


def test_a_body_that_stops_coming_is_lost_in_time() -> None:
    """The silence that a client bears holds within a body too."""
    transport = Transport(timeout_s=0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(BODY)}\r\n\r\n"
                connection.sendall(head.encode() + BODY[:500_000])
                ended.wait(30)

        ended = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        got, lost = read(transport, url)
        ended.set()
        thread.join()
    assert got == BODY[:500_000]
    assert lost is not None
    assert lost.reason == "no answer came in time"
    transport.close()
