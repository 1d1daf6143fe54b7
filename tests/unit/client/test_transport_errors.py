"""No failure of the HTTP library reaches a user: a new one fails here."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from embatch.errors import ConfigError, InputError
from embatch.transport import AsyncTransport, FileSlice, Lost, Request, Transport

RESPONSE_IN_HAND = {httpx2.HTTPStatusError}
"""Raised by raise_for_status() alone, which embatch never calls."""


def _kinds() -> Iterator[type[Exception]]:
    """Every exception that the library defines, found by walking its tree and its names."""
    waiting: list[type[Exception]] = [httpx2.HTTPError]
    waiting += [
        kind
        for kind in vars(httpx2).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    seen: set[type[Exception]] = set()
    while waiting:
        kind = waiting.pop()
        if kind not in seen and kind.__module__.startswith("httpx2"):
            seen.add(kind)
            waiting += kind.__subclasses__()
    yield from sorted(seen - RESPONSE_IN_HAND, key=lambda kind: kind.__name__)


def _made(kind: type[Exception]) -> Exception:
    for arguments in (("canary",), ()):
        try:
            return kind(*arguments)
        except TypeError:
            continue
    raise AssertionError(f"{kind} cannot be made")


REQUEST = Request(method="GET", url="http://127.0.0.1/")


@pytest.mark.parametrize("kind", list(_kinds()), ids=lambda kind: kind.__name__)
def test_every_exception_is_translated(kind: type[Exception]) -> None:
    """Sending and opening give Lost, or an error of embatch, without the foreign one in sight."""

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise _made(kind)

    async def afail(request: httpx2.Request) -> httpx2.Response:
        return fail(request)

    transport = Transport(inner=httpx2.MockTransport(fail))
    loop = AsyncTransport(inner=httpx2.MockTransport(afail))
    for attempt in (
        lambda: transport.send(REQUEST),
        lambda: transport.open(REQUEST),
        lambda: asyncio.run(loop.send(REQUEST)),
        lambda: asyncio.run(loop.open(REQUEST)),
    ):
        try:
            outcome = attempt()
        except ConfigError as error:
            said, hidden = str(error), error.__suppress_context__
            assert hidden
            assert "canary" not in said
        else:
            assert isinstance(outcome, Lost)
            assert "canary" not in repr(outcome)


@pytest.mark.parametrize("kind", [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout])
def test_what_never_left_is_known(kind: type[Exception]) -> None:
    """Without a connection the service cannot have acted."""

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise _made(kind)

    outcome = Transport(inner=httpx2.MockTransport(fail)).send(REQUEST)
    assert isinstance(outcome, Lost)
    assert not outcome.sent


@pytest.mark.parametrize("kind", [httpx2.ReadError, httpx2.ReadTimeout, httpx2.WriteError])
def test_what_may_have_arrived_is_in_doubt(kind: type[Exception]) -> None:
    """After the connection stood, anything may have happened."""

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise _made(kind)

    outcome = Transport(inner=httpx2.MockTransport(fail)).send(REQUEST)
    assert isinstance(outcome, Lost)
    assert outcome.sent


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"short", "shorter")])
def test_files_that_change_under_an_upload(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    """A file that vanished or shrank is an error of the data, not of Python, and sends nothing."""
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)

    def answer(_: httpx2.Request) -> httpx2.Response:
        raise AssertionError("nothing is sent")

    request = Request(method="POST", url="http://x/", body=FileSlice(path=path, start=2, size=9))
    with pytest.raises(InputError, match=said):
        Transport(inner=httpx2.MockTransport(answer)).send(request)
    with pytest.raises(InputError, match=said):
        asyncio.run(AsyncTransport(inner=httpx2.MockTransport(answer)).send(request))
