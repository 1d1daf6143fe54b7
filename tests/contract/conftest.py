"""Every provider that the contract suite runs on. A new one joins with a line in `OPENERS`."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pytest

from embatch.providers.base import Provider, RemoteStatus
from embatch.providers.local import open_local
from embatch.testing import FakeEngine
from embatch.types.results import Matrix

POISON = "POISON"
"""A text with this word fails as a row, on every provider of the suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Items on disk, as `datasets.stage` gives them."""

    path: Path
    items: int

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
        self.provider = open_local(
            model=None,
            folder=self.folder / "service",
            dims=16,
            task_type="retrieval_document",
            open_engine=lambda _, *, precision: self.engine,
        )

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
        self.provider.close()


OPENERS: dict[str, Callable[[Path], Case]] = {"local": LocalCase}


@pytest.fixture(params=list(OPENERS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Each provider in turn."""
    opened = OPENERS[request.param](tmp_path)
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
def ended(case: Case) -> Callable[[str], RemoteStatus]:
    """The status of a batch once it is done, with a deadline."""

    def wait(name: str) -> RemoteStatus:
        deadline = time.monotonic() + 30
        while not (status := case.provider.poll(name)).done:
            assert time.monotonic() < deadline, f"{name} never ended: {status}"
            time.sleep(0.002)
        return status

    return wait
