"""The local provider loads late, resumes what is there, and keeps spaces apart."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embatch.errors import ConfigError, InvalidRequestError, NotFoundError, ProviderUnavailableError
from embatch.providers.base import RemoteStatus, wire_key
from embatch.providers.local import LocalProvider, open_local
from embatch.service.files import ResultFile
from embatch.testing import FakeEngine
from embatch.types.state import JobState

TEXTS = [f"text {row}" for row in range(600)]
PROMPTS = {"retrieval_document": "passage: ", "retrieval_query": "query: ", "clustering": "c: "}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., LocalProvider]]:
    """Opens local providers over one folder; each is closed when the test ends."""
    made: list[LocalProvider] = []

    def open_one(engine: FakeEngine, **given: Any) -> LocalProvider:
        provider = open_local(
            model=given.pop("model", None),
            folder=tmp_path / "service",
            open_engine=lambda _, *, precision: engine,
            **given,
        )
        made.append(provider)
        return provider

    yield open_one
    for provider in made:
        provider.close()


def write(path: Path, texts: list[str]) -> str:
    table = pa.table({"text": texts})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return str(path)


def ended(provider: LocalProvider, name: str) -> RemoteStatus:
    deadline = time.monotonic() + 10
    while not (status := provider.poll(name)).done:
        assert time.monotonic() < deadline, status
        time.sleep(0.002)
    return status


def test_the_space_names_weights_precision_and_prompt(opened: Any) -> None:
    """All that makes local vectors comparable is in the space."""
    engine = FakeEngine(32, "tiny", prompts=PROMPTS, precision="bf16")
    space = opened(engine, dims=16, task_type="retrieval_document").space
    assert (space.provider, space.model, space.dims) == ("local", "tiny", 16)
    assert space.prompt_template == "passage: {text}"
    assert (space.precision, space.weights_sha256) == ("bf16", engine.weights_sha256)
    assert space.normalized
    bare = opened(engine, task_type="classification").space
    assert (bare.dims, bare.prompt_template) == (32, None)


@pytest.mark.parametrize("dims", [0, -1, 33])
def test_dims_that_the_model_lacks_are_refused(opened: Any, dims: int) -> None:
    """The message says what the model gives."""
    with pytest.raises(InvalidRequestError, match=r"gives 1\.\.32 dims, not"):
        _ = opened(FakeEngine(32), dims=dims).space


def test_the_engine_is_opened_once_and_only_when_needed(tmp_path: Path) -> None:
    """Opening a provider loads nothing; all later needs share one engine, asked for as told."""
    asked: list[tuple[str | None, str]] = []

    def open_engine(model: str | None, *, precision: str) -> FakeEngine:
        asked.append((model, precision))
        return FakeEngine()

    provider = open_local(
        model="m", precision="int8", folder=tmp_path / "service", open_engine=open_engine
    )
    assert asked == []
    assert provider.space.dims == provider.embed(["a"]).vectors.shape[1]
    assert provider.limits.billed is False
    assert provider.find("x") is None
    provider.close()
    assert asked == [("m", "int8")]


def test_searching_starts_no_service(opened: Any, tmp_path: Path) -> None:
    """Who only embeds a query makes no folder and starts no scheduler."""
    opened(FakeEngine()).embed(["query"], query=True)
    assert not (tmp_path / "service").exists()


def test_a_query_has_its_own_prompt(opened: Any) -> None:
    """Queries against documents use the query's prompt; other tasks have one for both sides."""
    engine = FakeEngine(prompts=PROMPTS)
    for task, prompt in (("retrieval_document", "query: "), ("clustering", "c: "), (None, "")):
        made = opened(engine, task_type=task).embed(["q"], query=True)
        assert (made.vectors == engine.expected(["q"], prompt=prompt)).all()


def test_a_model_that_cannot_be_opened_says_so_each_time(tmp_path: Path) -> None:
    """The engine's own error reaches the caller, and closing works all the same."""

    def open_engine(model: str | None, *, precision: str) -> FakeEngine:
        raise ConfigError("no model here")

    provider = open_local(model="m", folder=tmp_path, open_engine=open_engine)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no model here"):
            _ = provider.space
    provider.close()


def test_an_unfinished_batch_is_finished_by_the_next_to_open_it(
    opened: Any, tmp_path: Path
) -> None:
    """A batch that one process left half done is completed by another, that only looks for it."""
    gate = threading.Event()
    held = FakeEngine(delay_s=1.0, sleep=lambda _: gate.wait(10))
    first = opened(held)
    path = write(tmp_path / "stage.arrow", TEXTS)
    name = first.submit(path, "label", items=len(TEXTS), priority=0).name
    closing = threading.Thread(target=first.close)
    closing.start()
    assert first._scheduler._stopping.wait(10)
    gate.set()
    closing.join()
    assert held.closed
    assert 0 <= held.texts_embedded < len(TEXTS)
    engine = FakeEngine()
    second = opened(engine)
    found = second.find("label")
    assert found is not None
    assert found.name == name
    assert ended(second, name).state is JobState.COMPLETED
    vectors = np.concatenate([block.vectors for block in second.results(name)])
    keys = [key for block in second.results(name) for key in block.keys]
    assert (vectors == engine.expected(TEXTS)).all()
    assert keys == [wire_key("label", row) for row in range(len(TEXTS))]
    assert held.texts_embedded + engine.texts_embedded == len(TEXTS)


def test_another_model_never_goes_on_with_a_batch(opened: Any, tmp_path: Path) -> None:
    """Weights or arithmetic that differ leave the batch to the engine it was made for."""
    path = write(tmp_path / "stage.arrow", TEXTS[:10])
    first = opened(FakeEngine())
    first._service()[1].stop()
    name = first.submit(path, "label", items=10, priority=9).name
    other = opened(FakeEngine(precision="bf16"))
    later = other.submit(path, "later", items=10, priority=0).name
    assert ended(other, later).state is JobState.COMPLETED
    assert other.poll(name).state is JobState.PENDING
    assert ended(opened(FakeEngine()), name).state is JobState.COMPLETED


def test_submitting_a_label_again_gives_the_same_batch(opened: Any, tmp_path: Path) -> None:
    """A repeated submit creates nothing new."""
    provider = opened(FakeEngine())
    path = write(tmp_path / "stage.arrow", TEXTS)
    first = provider.submit(path, "label", items=len(TEXTS), priority=0)
    assert provider.submit(path, "label", items=len(TEXTS), priority=0) == first


def test_tokens_and_cuts_are_reported(opened: Any, tmp_path: Path) -> None:
    """Each row says how many tokens were read of it, and whether it was cut."""
    provider = opened(FakeEngine(max_tokens=5))
    path = write(tmp_path / "stage.arrow", ["one two", "one two three four five"])
    name = provider.submit(path, "label", items=2, priority=0).name
    assert ended(provider, name).progress.tokens == 9
    (block,) = provider.results(name)
    assert block.tokens.tolist() == [4, 5]
    assert block.truncated.tolist() == [False, True]


def test_a_full_disk_is_told_by_poll(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full, polling says try later, and why."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResultFile, "write", refuse)
    provider = opened(FakeEngine())
    path = write(tmp_path / "stage.arrow", TEXTS[:5])
    name = provider.submit(path, "label", items=5, priority=0).name
    with pytest.raises(ProviderUnavailableError, match="No space left on device"):
        ended(provider, name)


def test_discarding_a_batch_under_way_stops_it(opened: Any, tmp_path: Path) -> None:
    """A discarded batch is gone whatever its state, and its stage stays."""
    gate = threading.Event()
    provider = opened(FakeEngine(delay_s=1.0, sleep=lambda _: gate.wait(10)))
    path = write(tmp_path / "stage.arrow", TEXTS)
    name = provider.submit(path, "label", items=len(TEXTS), priority=0).name
    provider.discard(name, path)
    provider.discard(name, path)
    with pytest.raises(NotFoundError):
        provider.poll(name)
    gate.set()
    assert Path(path).exists()
