"""An error says whether the service may have acted: what never left this machine was not bought."""

import socket
from collections.abc import Callable, Sequence

import httpx2
import pytest

from embatch.client.auth import NoAuthorization
from embatch.client.calls import Calls
from embatch.client.embeds import embed_in_groups
from embatch.client.flow import Flow, Thread, drive
from embatch.client.requests import EmbedOptions
from embatch.client.submissions import embed_options
from embatch.errors import ProviderUnavailableError
from embatch.transport import Response, Transport
from embatch.types.embedding import ContentEmbedding

OPTIONS: EmbedOptions = embed_options("gemini-embedding-001", None, None, None)


def failing(*errors: type[httpx2.HTTPError]) -> Transport:
    """A transport whose calls fail so, one after another."""
    left = iter(errors)

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise next(left)("")

    return Transport(inner=httpx2.MockTransport(fail))


def asked(calls: Calls) -> Flow[Response]:
    return calls.answer("asking", calls.request("POST", "/v1/x", body={}))


def unavailable(transport: Transport, call: Callable[[], Flow[object]]) -> ProviderUnavailableError:
    with pytest.raises(ProviderUnavailableError) as caught:
        drive(call(), Thread(transport, sleep=lambda _: None))
    return caught.value


def test_where_nobody_listens_nothing_was_sent() -> None:
    """Every try is refused by the machine's own network."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        calls = Calls(base_url=url, authorization=NoAuthorization())
        assert unavailable(Transport(), lambda: asked(calls)).sent is False


@pytest.mark.parametrize("last", [httpx2.ConnectError, httpx2.ReadError])
def test_one_try_that_was_sent_is_enough(last: type[httpx2.HTTPError]) -> None:
    """The last try decides nothing where an earlier one may have arrived."""
    calls = Calls(base_url="http://127.0.0.1", authorization=NoAuthorization())
    refused = [httpx2.ConnectError] * (calls.policy.attempts - 2)
    transport = failing(*refused, httpx2.ReadTimeout, last)
    assert unavailable(transport, lambda: asked(calls)).sent is True


def test_without_a_token_nothing_was_sent() -> None:
    """The token service cannot be reached."""

    class Unreachable(NoAuthorization):
        blocks = True

        def prepare(self) -> None:
            raise ProviderUnavailableError("the token service gave no answer")

    calls = Calls(base_url="http://127.0.0.1", authorization=Unreachable())
    assert unavailable(failing(), lambda: asked(calls)).sent is False


@pytest.mark.parametrize("answered", [0, 1])
def test_groups_that_were_answered_were_sent(answered: int) -> None:
    """Of a call in several groups, one that never left says nothing of those before it."""
    groups = []

    def group(texts: Sequence[str]) -> Flow[list[ContentEmbedding]]:
        groups.append(texts)
        if len(groups) > answered:
            error = ProviderUnavailableError("refused")
            error.sent = False
            raise error
        return [ContentEmbedding([1.0, 0.0]) for _ in texts]
        yield

    error = unavailable(failing(), lambda: embed_in_groups(["a", "b"], OPTIONS, group, most=1))
    assert error.sent is (answered > 0)
