"""Flows: effects out, outcomes in, in a thread and on a loop."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from embatch.client.flow import (
    Emit,
    Flow,
    Loop,
    Notify,
    OpenStream,
    Sleep,
    Thread,
    Work,
    adrive,
    astream,
    drive,
    perform,
    stream,
)
from embatch.errors import InputError
from embatch.transport import AsyncTransport, Request, Stream, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Opens(Transport):
    """Opens streams that only know whether they were shut."""

    def __init__(self) -> None:
        super().__init__()
        self.shuts = 0

    def open(self, request: Request) -> Stream:
        return Stream(status=200, headers={}, response=object())  # type: ignore[arg-type]

    def shut(self, stream: Stream) -> None:
        self.shuts += 1


class _OpensLoop(AsyncTransport):
    def __init__(self) -> None:
        super().__init__()
        self.shuts = 0

    async def open(self, request: Request) -> Stream:
        return Stream(status=200, headers={}, response=object())  # type: ignore[arg-type]

    async def shut(self, stream: Stream) -> None:
        self.shuts += 1


def _sum_flow(sleeps: list[float]) -> Flow[int]:
    one = yield from perform(Work(call=lambda: 1))
    yield from perform(Sleep(seconds=0.0))
    yield from perform(Notify(call=lambda: sleeps.append(1.0)))
    return one + 1


def test_both_drivers_run_one_flow() -> None:
    """The same generator gives the same value from either driver."""
    called: list[float] = []
    assert drive(_sum_flow(called), Thread(Transport())) == 2
    assert asyncio.run(adrive(_sum_flow(called), Loop(AsyncTransport()))) == 2
    assert called == [1.0, 1.0]


def test_failures_arrive_where_the_effect_was_asked_for() -> None:
    """An effect that raises raises inside the flow, which may go on."""

    def broken() -> int:
        raise InputError("no")

    def flow() -> Flow[str]:
        try:
            yield from perform(Work(call=broken))
        except InputError:
            return "mended"
        return "never"

    assert drive(flow(), Thread(Transport())) == "mended"
    assert asyncio.run(adrive(flow(), Loop(AsyncTransport()))) == "mended"


def test_errors_leave_without_the_frames_of_flows() -> None:
    """What a flow held in its locals is in no traceback."""

    def flow() -> Flow[None]:
        secret = "canary"
        yield from perform(Sleep(seconds=0.0))
        raise InputError(f"gone {len(secret)}")

    with pytest.raises(InputError) as caught:
        drive(flow(), Thread(Transport()))
    traceback: Any = caught.value.__traceback__.tb_next  # after this test's own frame
    while traceback is not None:
        assert "canary" not in repr(traceback.tb_frame.f_locals)
        traceback = traceback.tb_next


def _emitting() -> Flow[None]:
    yield from perform(OpenStream(request=Request(method="GET", url="http://x")))
    for number in range(3):
        yield from perform(Emit(value=number))


def test_streams_give_values_as_they_come() -> None:
    """Emitted values come out in order; streams left open are given back at the end."""
    transport, loop = _Opens(), _OpensLoop()
    assert list(stream(_emitting(), Thread(transport))) == [0, 1, 2]

    async def all_of() -> list[int]:
        return [value async for value in astream(_emitting(), Loop(loop))]

    assert asyncio.run(all_of()) == [0, 1, 2]
    assert transport.shuts == loop.shuts == 1


def test_streams_that_are_left_give_their_connection_back() -> None:
    """A reader who stops early leaks nothing."""
    transport = _Opens()
    values: Iterator[int] = stream(_emitting(), Thread(transport))
    assert next(values) == 0
    values.close()  # type: ignore[attr-defined]
    assert transport.shuts == 1


def test_callbacks_may_be_coroutine_functions() -> None:
    """On a loop a callback's coroutine is awaited."""
    seen: list[str] = []

    async def note() -> None:
        seen.append("yes")

    def flow() -> Flow[None]:
        yield from perform(Notify(call=note))

    asyncio.run(adrive(flow(), Loop(AsyncTransport())))
    assert seen == ["yes"]
