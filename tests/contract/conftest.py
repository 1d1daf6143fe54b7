"""Every provider that the contract suite runs on. A new one joins with a line in `OPENERS`."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest
from google.oauth2.credentials import Credentials

from embatch.config import CloudSettings, Secret
from embatch.providers.base import Provider, RemoteStatus
from embatch.providers.clouds import CloudProvider
from embatch.providers.gemini import open_gemini
from embatch.providers.local import open_local
from embatch.providers.vertex import open_vertex
from embatch.testing import FakeEngine
from embatch.testing.cloud import FakeCloud, Fault, expected_vectors
from embatch.types.results import Matrix
from embatch.vectors import normalize

POISON = "POISON"
"""A text with this word fails as a row, on every provider of the suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Items on disk, as `datasets.stage` gives them."""

    path: Path
    items: int

    @property
    def scratch(self) -> Path:
        """Where files beside it may lie."""
        return self.path.parent

    def read(self) -> Iterator[pa.RecordBatch]:
        """The items in order."""
        with pa.ipc.open_file(str(self.path)) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


class Case(Protocol):
    """One provider under test, and what the suite must know about its other side."""

    @property
    def provider(self) -> Provider: ...

    def truth(self, texts: Sequence[str], *, query: bool = False) -> Matrix:
        """The vectors that the provider must give."""
        ...

    def reopen(self) -> Provider:
        """The same service, as another process would open it."""
        ...

    def hold(self) -> None:
        """From now on, batches are accepted but not worked on."""
        ...

    def release(self) -> None:
        """Work goes on."""
        ...

    def close(self) -> None: ...


@dataclass
class LocalCase:
    """The local provider over the fake engine."""

    folder: Path
    engine: FakeEngine = field(init=False)
    provider: Provider = field(init=False)

    def __post_init__(self) -> None:
        self._flowing = threading.Event()
        self._flowing.set()
        self.engine = FakeEngine(
            32,
            poison=POISON,
            prompts={"retrieval_document": "passage: ", "retrieval_query": "query: "},
            delay_s=1e-9,
            sleep=lambda _: self._wait(),
        )
        self._opened: list[Provider] = []
        self.provider = self.reopen()

    def reopen(self) -> Provider:
        provider = open_local(
            model=None,
            folder=self.folder / "service",
            dims=16,
            task_type="retrieval_document",
            open_engine=lambda _, *, precision: self.engine,
        )
        self._opened.append(provider)
        return provider

    def _wait(self) -> None:
        assert self._flowing.wait(30)

    def truth(self, texts: Sequence[str], *, query: bool = False) -> Matrix:
        prompt = "query: " if query else "passage: "
        return self.engine.expected(texts, prompt=prompt, dims=16)

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self.release()
        for provider in self._opened:
            provider.close()


@dataclass
class CloudCase:
    """A cloud provider over the fake cloud."""

    folder: Path
    on: str
    model: str
    cloud: FakeCloud = field(init=False)
    provider: CloudProvider = field(init=False)
    sleeps: list[float] = field(default_factory=list)
    """Seconds that the provider would have slept."""

    def __post_init__(self) -> None:
        said = {"message": f"this text is bad: {POISON}", "code": 3, "marker": POISON}
        self.cloud = FakeCloud(faults=[Fault("row_error", args=said)], job_duration_s=0.02)
        self.cloud.start()
        self._opened: list[CloudProvider] = []
        self.provider = self.reopen()

    def reopen(self) -> CloudProvider:
        asked = {"model": self.model, "dims": 128, "task_type": "retrieval_document"}
        provider: CloudProvider
        if self.on == "gemini":
            settings = CloudSettings(
                api_key=Secret(self.cloud.api_key), gemini_base_url=self.cloud.gemini_url
            )
            provider = open_gemini(**asked, settings=settings)  # type: ignore[arg-type]
        else:
            settings = CloudSettings(
                project="a-project",
                location="us" if self.model == "gemini-embedding-2" else "us-central1",
                vertex_base_url=self.cloud.vertex_url,
                storage_base_url=self.cloud.storage_url,
                staging="gs://bucket/staged",
            )
            token = Credentials(token=self.cloud.access_token)  # type: ignore[no-untyped-call]
            provider = open_vertex(**asked, settings=settings, credentials=token)  # type: ignore[arg-type]
        provider._performer.sleep = self.sleeps.append
        self._opened.append(provider)
        return provider

    def truth(self, texts: Sequence[str], *, query: bool = False) -> Matrix:
        task = "retrieval_query" if query else "retrieval_document"
        before = ""
        if self.model == "gemini-embedding-2":
            before = "task: search result | query: " if query else "title: none | text: "
        made = expected_vectors(
            [before + text for text in texts], model=self.model, dims=128, task_type=task
        )
        # What has length 1 already must come as it is, to the bit.
        return made if self.model != "gemini-embedding-001" else normalize(made)

    def hold(self) -> None:
        self.cloud.add_fault(Fault("job_stuck"))

    def release(self) -> None:
        self.cloud.clear_faults("job_stuck")

    def fault(self, kind: str, times: int | None = None, **args: Any) -> None:
        """Puts a fault in force."""
        match, after = args.pop("match", {}), args.pop("after_matches", 0)
        self.cloud.add_fault(Fault(kind, match, times=times, after=after, args=args))

    def route(self, call: str) -> str:
        """What the cloud calls one of the calls on batches."""
        return f"batches.{call}" if self.on == "gemini" else f"vertex.jobs.{call}"

    def left(self) -> list[str]:
        """Files and objects that the service holds."""
        kind = "file" if self.on == "gemini" else "object"
        return [str(doc) for doc in self.cloud._core.store.all(kind)]

    def close(self) -> None:
        for provider in self._opened:
            provider.close()
        self.cloud.stop()
        assert self.cloud.crashes() == []


CLOUDS: dict[str, Callable[[Path], CloudCase]] = {
    name: partial(CloudCase, on=on, model=model)
    for name, on, model in (
        ("gemini", "gemini", "gemini-embedding-001"),
        ("gemini v2", "gemini", "gemini-embedding-2"),
        ("vertex", "vertex", "gemini-embedding-001"),
        ("vertex v2", "vertex", "gemini-embedding-2"),
        ("vertex legacy", "vertex", "text-embedding-005"),
    )
}
OPENERS: dict[str, Callable[[Path], Case]] = {"local": LocalCase, **CLOUDS}


@pytest.fixture(params=list(OPENERS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Each provider in turn."""
    opened = OPENERS[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture(params=["gemini", "vertex"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CloudCase]:
    """Each cloud in turn."""
    opened = CLOUDS[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Stages texts in record batches of 100."""
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("row", pa.int64()),
            ("text", pa.string()),
            ("text_sha256", pa.binary(32)),
        ]
    )

    def write(texts: Sequence[str], name: str = "00000") -> Stage:
        rows = range(len(texts))
        digests = [sha256(text.encode()).digest() for text in texts]
        columns = [[f"key {row}" for row in rows], list(rows), list(texts), digests]
        table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
        path = tmp_path / f"{name}.arrow"
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_table(table, max_chunksize=100)
        return Stage(path=path, items=len(texts))

    return write


@pytest.fixture
def ended(request: pytest.FixtureRequest) -> Callable[[str], RemoteStatus]:
    """The status of a batch once it is done, with a deadline."""
    name_of_case = "cloud" if "cloud" in request.fixturenames else "case"
    case = request.getfixturevalue(name_of_case)

    def wait(name: str) -> RemoteStatus:
        deadline = time.monotonic() + 30
        while not (status := case.provider.poll(name)).done:
            assert time.monotonic() < deadline, f"{name} never ended: {status}"
            time.sleep(0.002)
        return status

    return wait
