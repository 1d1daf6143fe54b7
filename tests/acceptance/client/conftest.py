"""One set of cases for both clients on both clouds, over real sockets."""

import asyncio
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from embatch.client import AsyncClient, Client, RetryPolicy
from embatch.config import CloudSettings
from embatch.testing.cloud import FakeCloud, Fault
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings

STAGING = "gs://bucket/staged"


class Blocking:
    """An AsyncClient whose calls are run to their end one by one, lists included."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **named: Any) -> Any:
            outcome = method(*args, **named)
            if inspect.iscoroutine(outcome):
                return self._runner.run(outcome)
            return iter(self._runner.run(_listed(outcome)))

        return call

    def shut(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


async def _listed(stream: Any) -> list[Any]:
    return [value async for value in stream]


@dataclass
class Case:
    """A client of one kind on one cloud."""

    cloud: FakeCloud
    on: str
    kind: str
    sleeps: list[float] = field(default_factory=list)
    """Seconds that the client would have slept."""
    opened: list[Any] = field(default_factory=list)
    client: Any = None

    def open(self, **changes: Any) -> Any:
        """Another client, by default like `client`."""
        asked: dict[str, Any] = {"settings": CloudSettings(), "retry": RetryPolicy()}
        if self.on == "gemini":
            asked |= {"api_key": self.cloud.api_key, "base_url": self.cloud.gemini_url}
        else:
            asked |= {
                "auth": "vertex_ai",
                "credentials": Credentials(token=self.cloud.access_token),
                "project": "a-project",
                "location": "us-central1",
                "base_url": self.cloud.vertex_url,
                "storage_base_url": self.cloud.storage_url,
                "staging": STAGING,
            }
        asked |= changes
        if self.kind == "Client":
            client: Any = Client(**asked)
            client._performer.sleep = self.sleeps.append
            self.opened.append(client.close)
            return client
        inner = AsyncClient(**asked)

        async def sleep(seconds: float) -> None:
            self.sleeps.append(seconds)

        inner._performer.sleep = sleep
        client = Blocking(inner)
        self.opened.append(client.shut)
        return client

    def fault(self, kind: str, times: int | None = None, **args: Any) -> None:
        """Puts a fault in force."""
        match = args.pop("match", {})
        after = args.pop("after_matches", 0)
        self.cloud.add_fault(Fault(kind, match, times=times, after=after, args=args))

    def finished(self, texts: Sequence[str], **asked: Any) -> EmbedContentBatch:
        """A batch of these texts, at its end."""
        made = self.client.async_batch_embed_contents(texts, display_name="case", **asked)
        self.cloud.finish(made.name)
        batch: EmbedContentBatch = self.client.get_batch_status(made.name)
        return batch

    def results(self, texts: Sequence[str], **asked: Any) -> BatchEmbeddings:
        """What a batch of these texts gives, read by name alone."""
        found: BatchEmbeddings = self.client.get_batch_embeddings(
            self.finished(texts, **asked).name
        )
        return found

    def route(self, call: str) -> str:
        """What the cloud calls one of the calls on batches."""
        return f"batches.{call}" if self.on == "gemini" else f"vertex.jobs.{call}"

    def asked(self, route: str) -> int:
        """How many requests came on a route."""
        return self.cloud.bill().requests.get(route, 0)


@pytest.fixture(params=["Client", "AsyncClient"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two clients."""
    return str(request.param)


def _case(on: str, kind: str) -> Iterator[Case]:
    with FakeCloud(job_duration_s=0.02) as cloud:
        case = Case(cloud=cloud, on=on, kind=kind)
        case.client = case.open()
        yield case
        for close in case.opened:
            close()


@pytest.fixture(params=["gemini", "vertex"])
def case(request: pytest.FixtureRequest, kind: str) -> Iterator[Case]:
    """Both clients on both clouds."""
    yield from _case(request.param, kind)


@pytest.fixture
def gemini(kind: str) -> Iterator[Case]:
    """Both clients on the Gemini API."""
    yield from _case("gemini", kind)


@pytest.fixture
def vertex(kind: str) -> Iterator[Case]:
    """Both clients on Vertex AI."""
    yield from _case("vertex", kind)


@pytest.fixture
def held() -> Iterator[Case]:
    """The Gemini API with a clock that stands: jobs end when the test says so."""
    with FakeCloud(manual_clock=True) as cloud:
        case = Case(cloud=cloud, on="gemini", kind="Client")
        case.client = case.open()
        yield case
        for close in case.opened:
            close()


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines to a new file."""
    numbers = itertools.count()

    def write(lines: Sequence[str]) -> Path:
        path = tmp_path / f"rows-{next(numbers)}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long form of a proof is run when it is asked for."""
    if "soak" not in (config.getoption("-m") or ""):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="long: run with -m soak"))
