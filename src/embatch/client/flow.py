"""Flows: every operation of the API written once, performed in a thread or on an event loop.

A flow is a generator. It yields effects, is sent their outcomes, and returns a typed value:

    def count_models(...) -> Flow[int]:
        response = yield from perform(Send(request=...))
        return len(parse(response))

`drive` performs the effects in the calling thread, `adrive` on an event loop. A flow that yields
`Emit` gives a stream of values and is driven by `stream` or `astream`.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from embatch.errors import EmbatchError
from embatch.transport import AsyncTransport, Lost, Request, Response, Stream, Transport

T = TypeVar("T")
Outcome = TypeVar("Outcome")


class Effect(Generic[Outcome]):
    """Something to be done for a flow; its outcome is sent back."""

    __slots__ = ()


Flow = Generator[Effect[Any], Any, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Effect[Response | Lost]):
    """Send a request and read the whole answer."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStream(Effect[Stream | Lost]):
    """Send a request and read the answer's head."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStream(Effect[bytes | Lost]):
    """Read the next bytes of a body; empty at its end."""

    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutStream(Effect[None]):
    """Give a stream's connection back."""

    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep(Effect[None]):
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Effect[Outcome]):
    """Call something that blocks: disk, object storage, a token service."""

    call: Callable[[], Outcome] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify(Effect[None]):
    """Call the user's callback; on an event loop it may be a coroutine function."""

    call: Callable[[], object] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit(Effect[None]):
    """Give a value to whoever reads the stream."""

    value: object = field(repr=False)


def perform(effect: Effect[Outcome]) -> Flow[Outcome]:
    """Yields the effect and gives its outcome, typed."""
    return cast(Outcome, (yield effect))


class Thread:
    """Performs effects in the calling thread."""

    def __init__(
        self, transport: Transport, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.transport = transport
        self.sleep = sleep

    def __call__(self, effect: Effect[Any]) -> object:
        """The effect's outcome."""
        match effect:
            case Send(request=request):
                return self.transport.send(request)
            case OpenStream(request=request):
                return self.transport.open(request)
            case ReadStream(stream=opened):
                return self.transport.read(opened)
            case ShutStream(stream=opened):
                self.transport.shut(opened)
            case Sleep(seconds=seconds):
                self.sleep(seconds)
            case Work(call=call):
                return call()
            case Notify(call=call):
                call()
            case _:
                raise TypeError(f"no way to perform {type(effect).__name__}")
        return None


class Loop:
    """Performs effects on the running event loop; what blocks goes to a thread."""

    def __init__(
        self, transport: AsyncTransport, *, sleep: Callable[[float], Any] = asyncio.sleep
    ) -> None:
        self.transport = transport
        self.sleep = sleep

    async def __call__(self, effect: Effect[Any]) -> object:
        """The effect's outcome."""
        match effect:
            case Send(request=request):
                return await self.transport.send(request)
            case OpenStream(request=request):
                return await self.transport.open(request)
            case ReadStream(stream=opened):
                return await self.transport.read(opened)
            case ShutStream(stream=opened):
                await self.transport.shut(opened)
            case Sleep(seconds=seconds):
                await self.sleep(seconds)
            case Work(call=call):
                return await asyncio.to_thread(call)
            case Notify(call=call):
                said = call()
                if inspect.isawaitable(said):
                    await said
            case _:
                raise TypeError(f"no way to perform {type(effect).__name__}")
        return None


def drive(flow: Flow[T], performer: Thread) -> T:
    """Runs a flow to its end in the calling thread."""
    opened: set[Stream] = set()
    try:
        effect = next(flow)
        while True:
            effect = _step(flow, effect, performer, opened)
    except StopIteration as end:
        return cast(T, end.value)
    except EmbatchError as error:
        raise error.with_traceback(None) from None
    finally:
        _leave(flow, performer, opened)


def stream(flow: Flow[Any], performer: Thread) -> Iterator[Any]:
    """The values that a flow emits, as it comes to them. Closing the iterator ends the flow."""
    opened: set[Stream] = set()
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, Emit):
                yield effect.value
                effect = flow.send(None)
            else:
                effect = _step(flow, effect, performer, opened)
    except StopIteration:
        return
    except EmbatchError as error:
        raise error.with_traceback(None) from None
    finally:
        _leave(flow, performer, opened)


@dataclass(frozen=True, slots=True)
class _Raised:
    """An effect that failed: the flow hears of it where it asked."""

    error: Exception


def _step(
    flow: Flow[Any], effect: Effect[Any], performer: Thread, opened: set[Stream]
) -> Effect[Any]:
    try:
        outcome = performer(effect)
    except Exception as error:  # noqa: BLE001 - the flow gets it, nothing is swallowed
        return _resume(flow, _Raised(error))
    _note(opened, effect, outcome)
    return _resume(flow, outcome)


def _resume(flow: Flow[Any], outcome: object) -> Effect[Any]:
    return flow.throw(outcome.error) if isinstance(outcome, _Raised) else flow.send(outcome)


def _leave(flow: Flow[Any], performer: Thread, opened: set[Stream]) -> None:
    flow.close()
    for left in opened:
        performer.transport.shut(left)


def _note(opened: set[Stream], effect: Effect[Any], outcome: object) -> None:
    if isinstance(outcome, Stream):
        opened.add(outcome)
    elif isinstance(effect, ShutStream):
        opened.discard(effect.stream)


async def adrive(flow: Flow[T], performer: Loop) -> T:
    """Runs a flow to its end on the running event loop."""
    opened: set[Stream] = set()
    try:
        effect = next(flow)
        while True:
            effect = _resume(flow, await _attempt(effect, performer, opened))
    except StopIteration as end:
        return cast(T, end.value)
    except EmbatchError as error:
        raise error.with_traceback(None) from None
    finally:
        await _aleave(flow, performer, opened)


async def astream(flow: Flow[Any], performer: Loop) -> AsyncIterator[Any]:
    """The values that a flow emits, as it comes to them. Closing the iterator ends the flow."""
    opened: set[Stream] = set()
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, Emit):
                yield effect.value
                effect = flow.send(None)
            else:
                effect = _resume(flow, await _attempt(effect, performer, opened))
    except StopIteration:
        return
    except EmbatchError as error:
        raise error.with_traceback(None) from None
    finally:
        await _aleave(flow, performer, opened)


async def _attempt(effect: Effect[Any], performer: Loop, opened: set[Stream]) -> object:
    try:
        outcome = await performer(effect)
    except Exception as error:  # noqa: BLE001 - the flow gets it, nothing is swallowed
        return _Raised(error)
    _note(opened, effect, outcome)
    return outcome


async def _aleave(flow: Flow[Any], performer: Loop, opened: set[Stream]) -> None:
    flow.close()
    for left in opened:
        await performer.transport.shut(left)
