"""Requests to one service: sent, judged, tried again; and creation, which never is blindly."""

import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import orjson

from embatch.client.auth import Authorization
from embatch.client.flow import Flow, OpenStream, ReadStream, Send, ShutStream, Sleep, Work, perform
from embatch.client.retry import Accepted, Again, Refused, RetryPolicy, Stale, judge
from embatch.errors import (
    EmbatchError,
    IndeterminateError,
    InvalidRequestError,
    ProviderUnavailableError,
)
from embatch.transport import FileSlice, Lost, Request, Response, Stream

T = TypeVar("T")
Once = Flow[Response | Lost] | Flow[Stream | Response | Lost]
Gone = tuple[type[EmbatchError], ...]
LOOKS: Final = 2
"""Walks of a client whose caller waits for the answer."""
BETWEEN_LOOKS_S: Final = 2.0
_log = logging.getLogger("embatch.client")

Body = Mapping[str, Any] | bytes | FileSlice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How requests to one service are made."""

    base_url: str
    """Without a slash at its end."""
    authorization: Authorization = field(repr=False)
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    """Seconds that only grow."""
    wall_clock: Callable[[], float] = field(default=time.time, repr=False)
    """Seconds since 1970, to read dates by."""
    looks: int = LOOKS
    """Complete walks of the list after an ambiguous creation, with a pause between them."""

    def trying_once(self) -> "Calls":
        """The same, without a second try or a second look: nothing in it waits."""
        return replace(self, policy=replace(self.policy, attempts=1), looks=1)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        open_to_all: bool = False,
    ) -> Request:
        """A request to `path`, which starts with a slash. `open_to_all` sends no credentials."""
        asked = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        given = dict(headers or {})
        if isinstance(body, Mapping):
            body = _encoded(body)
        if body is not None:
            given.setdefault("content-type", "application/json")
        return Request(
            method=method,
            url=f"{self.base_url}{path}"
            + (f"?{urlencode(asked, quote_via=quote)}" if asked else ""),
            headers=given,
            body=body,
            authorization=None if open_to_all else self.authorization,
        )

    def answer(self, what: str, request: Request, *, gone: Gone = ()) -> Flow[Response]:
        """The answer to a request that may be repeated.

        `gone` is how the service answers a removal of what is not there: after a try whose answer
        was lost, it means that the removal worked.
        """
        found = yield from self._tried(what, lambda: perform(Send(request=request)), gone)
        if isinstance(found, Stream):
            raise TypeError("sending opens no stream")
        return found

    def opened(self, what: str, request: Request) -> Flow[Stream]:
        """The answer to a request that may be repeated, its body still to be read."""
        found = yield from self._tried(what, lambda: _open(request))
        if not isinstance(found, Stream):
            raise ProviderUnavailableError(
                f"{what}: the service answered {found.status}, a kind not asked for"
            )
        return found

    def _tried(
        self, what: str, once: Callable[[], Once], gone: Gone = ()
    ) -> Flow[Response | Stream]:
        yield from self.ready()
        renewed = in_doubt = False
        for attempt in itertools.count():
            outcome = yield from once()
            if isinstance(outcome, Stream):
                return outcome
            verdict = self.judged(outcome, what=what, attempt=attempt)
            match verdict:
                case Accepted(response=response):
                    return response
                case Refused(error=error):
                    if in_doubt and isinstance(error, gone):
                        return Response(status=200, headers={}, body=b"")
                    raise error
                case Stale(error=error):
                    if renewed or not (yield from self.renewed()):
                        raise error
                    renewed = True
                case Again(wait_s=wait_s, error=error, ambiguous=ambiguous):
                    in_doubt = in_doubt or ambiguous
                    if attempt + 1 >= self.policy.attempts:
                        if isinstance(error, ProviderUnavailableError):
                            error.sent = in_doubt
                        raise error
                    yield from perform(Sleep(seconds=wait_s))
        raise AssertionError("counting never ends")

    def ready(self) -> Flow[None]:
        """Makes sure of a token, where tokens are used."""
        if not self.authorization.blocks:
            return
        try:
            yield from perform(Work(call=self.authorization.prepare))
        except ProviderUnavailableError as error:
            error.sent = False
            raise

    def renewed(self) -> Flow[bool]:
        """Gets a new token after one was refused; False where there are no tokens."""
        if not self.authorization.blocks:
            return False
        return (yield from perform(Work(call=self.authorization.renew)))

    def json(self, what: str, request: Request, *, gone: Gone = ()) -> Flow[dict[str, Any]]:
        """The JSON object that answers a request that may be repeated; `gone` as in `answer`."""
        response = yield from self.answer(what, request, gone=gone)
        return parse_object(response.body, what)

    def judged(
        self, outcome: Response | Lost, *, what: str, attempt: int, creating: bool = False
    ) -> Accepted | Again | Stale | Refused:
        """The outcome under this service's policy; failures are logged without content."""
        verdict = judge(
            outcome,
            what=what,
            attempt=attempt,
            policy=self.policy,
            jitter=self.jitter,
            now=self.wall_clock,
            creating=creating,
        )
        if not isinstance(verdict, Accepted):
            _log.info("try %d: %s", attempt + 1, verdict.error)
        return verdict


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        pass
    # Outside of the handler: the foreign error may quote what was to be sent.
    raise InvalidRequestError(
        "an argument holds half of a surrogate pair, which no UTF-8 can carry: clean it"
    )


def _open(request: Request) -> Flow[Stream | Response | Lost]:
    """A stream, or the whole of an answer that is a failure."""
    outcome = yield from perform(OpenStream(request=request))
    if isinstance(outcome, Lost) or outcome.status in (200, 206):
        return outcome
    return (yield from read_whole(outcome))


def read_whole(stream: Stream) -> Flow[Response | Lost]:
    """The rest of a stream as one answer."""
    parts: list[bytes] = []
    while True:
        chunk = yield from perform(ReadStream(stream=stream))
        if isinstance(chunk, Lost) or not chunk:
            break
        parts.append(chunk)
    yield from perform(ShutStream(stream=stream))
    if isinstance(chunk, Lost):
        return chunk
    return Response(status=stream.status, headers=stream.headers, body=b"".join(parts))


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object; ProviderUnavailableError when the bytes are none."""
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ProviderUnavailableError(f"{what}: the answer is not the JSON object expected")
    return document


def create_once(
    calls: Calls,
    *,
    label: str,
    request: Request,
    parse: Callable[[dict[str, Any]], T],
    find: Callable[[str], Flow[T | None]],
) -> Flow[T]:
    """Creates what bears `label`, and sends the request again only when it cannot have arrived.

    After an ambiguous answer the full list is walked for the label. Found: that one is given.
    Else IndeterminateError: the creation may still take effect.
    """
    what = f"creating batch {label!r}"
    yield from calls.ready()
    renewed = False
    for attempt in itertools.count():
        outcome = yield from perform(Send(request=request))
        match calls.judged(outcome, what=what, attempt=attempt, creating=True):
            case Accepted(response=response):
                try:
                    return parse(parse_object(response.body, what))
                except ProviderUnavailableError as error:
                    doubt: EmbatchError = error
                return (yield from _look_for(calls.looks, label, find, doubt))
            case Refused(error=error):
                raise error
            case Stale(error=error):
                if renewed or not (yield from calls.renewed()):
                    raise error
                renewed = True
            case Again(ambiguous=True, error=error):
                return (yield from _look_for(calls.looks, label, find, error))
            case Again(wait_s=wait_s, error=error):
                if attempt + 1 >= calls.policy.attempts:
                    raise error
                yield from perform(Sleep(seconds=wait_s))
    raise AssertionError("counting never ends")


def _look_for(
    looks: int, label: str, find: Callable[[str], Flow[T | None]], error: EmbatchError
) -> Flow[T]:
    for look in range(looks):
        if look:
            yield from perform(Sleep(seconds=BETWEEN_LOOKS_S))
        try:
            found = yield from find(label)
        except EmbatchError as failure:
            _log.info("looking for batch %r: %s", label, failure)
            continue
        if found is not None:
            return found
    doubt = IndeterminateError(
        f"creating batch {label!r} may or may not have taken effect ({error}) and the list does "
        "not show it yet. Look for this display name again before you submit: "
        "client.find_batch(label).",
        label=label,
    )
    doubt.service_message = error.service_message
    raise doubt
