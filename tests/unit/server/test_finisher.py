"""Outputs of batches that have ended, through restarts and trouble of single batches."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from embatch.server import finisher as finishing
from embatch.server.details import BatchDetails, shown_batch
from embatch.server.finisher import TRIES, Finisher
from embatch.server.intake import write_requests
from embatch.server.models import Catalogue
from embatch.server.outputs import OUTPUT_FILE
from embatch.server.service import Service
from embatch.server.settings import ServerSettings
from embatch.server.weather import Weather
from embatch.server.wire_rows import RowRules, read_file_row
from embatch.service.batch import StoredBatch
from embatch.service.files import RESULTS_FILE
from embatch.service.scheduler import Scheduler
from embatch.service.store import BatchStore
from embatch.testing import FakeEngine
from embatch.types.state import JobState

from .conftest import DIMS, MODEL, keyed

CATALOGUE = Catalogue({"fake": FakeEngine(DIMS)}, {})


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """An empty store."""
    made = BatchStore(tmp_path)
    yield made
    made.close()


def computed(
    store: BatchStore, label: str, *texts: str, file_name: str | None = "f"
) -> StoredBatch:
    """A batch that the service has ended; nobody has written its output."""
    rules = RowRules(model=MODEL, dims=DIMS)
    path = store.folder("x").parents[1] / label
    rows = (read_file_row(line, rules) for line in keyed(*texts).splitlines())
    written = write_requests(path, rows, CATALOGUE.own)
    batch = store.create(
        label=label, requests=path, items=written.rows, model=CATALOGUE.own.key, dims=written.dims,
        details=BatchDetails(display_name="", model=MODEL, file_name=file_name).build(),
    )  # fmt: skip
    scheduler = Scheduler(store, CATALOGUE.engine_for)
    scheduler.start()
    eventually(lambda: store.get(batch.id).done)
    assert scheduler.stop(10.0)
    return store.get(batch.id)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outputs(store: BatchStore, batch: StoredBatch) -> list[Any]:
    content = (store.folder(batch.id) / OUTPUT_FILE).read_bytes()
    return [orjson.loads(line) for line in content.splitlines()]


def test_what_a_killed_server_left_is_written(store: BatchStore) -> None:
    """Found at the start: until then the batch runs on for its callers."""
    batch = computed(store, "left", "a", "b")
    (store.folder(batch.id) / "output.dead").write_bytes(b"half a li")
    assert shown_batch(batch).state is JobState.PROCESSING
    assert shown_batch(batch).ended_at is None
    finisher = Finisher(store, Weather())
    finisher.start()
    eventually(lambda: shown_batch(store.get(batch.id)).ended_at is not None)
    finisher.stop()
    assert [line["key"] for line in outputs(store, batch)] == ["k0", "k1"]
    assert not list(store.folder(batch.id).glob("output.*"))
    assert finisher.open_models() == []
    assert Finisher(store, Weather()).open_models() == []


def test_killed_between_output_and_record(store: BatchStore) -> None:
    """It is written again, the same."""

    class KilledError(BaseException):
        pass

    def kill(name: str) -> None:
        if name == "serve.written":
            raise KilledError

    batch = computed(store, "left", "a", "b")
    killed = Finisher(store, Weather(), checkpoint=kill)
    with pytest.raises(KilledError):
        killed._finish(store.get(batch.id))
    first = outputs(store, batch)
    finisher = Finisher(store, Weather())
    finisher.start()
    eventually(lambda: shown_batch(store.get(batch.id)).ended_at is not None)
    finisher.stop()
    assert outputs(store, batch) == first


def test_a_broken_batch_fails_alone(store: BatchStore) -> None:
    """Its results are cut off on the disk: it is FAILED, and the ones behind it end well."""
    broken = computed(store, "broken", *(f"t{n}" for n in range(50)))
    behind = computed(store, "behind", "a")
    results = store.folder(broken.id) / RESULTS_FILE
    results.write_bytes(results.read_bytes()[:100])
    finisher = Finisher(store, Weather())
    finisher.start()
    eventually(lambda: not finisher.open_models())
    finisher.stop()
    shown = shown_batch(store.get(broken.id))
    assert (shown.state, shown.output) == (JobState.FAILED, False)
    assert "submit it again" in (shown.error or "")
    assert shown_batch(store.get(behind.id)).output


def test_trouble_of_one_batch_does_not_hold_up_others(store: BatchStore) -> None:
    """The disk refuses one output for now: the ones behind are written, it follows when it can."""
    stuck = computed(store, "stuck", "a")
    behind = computed(store, "behind", "b")

    class Storm(Weather):
        fair = False

        def results(self, store: BatchStore, batch: StoredBatch, stopping: Any) -> Any:
            if batch.id == stuck.id and not self.fair:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().results(store, batch, stopping)

    storm = Storm()
    finisher = Finisher(store, storm, retry_s=0.01)
    finisher.start()
    eventually(lambda: shown_batch(store.get(behind.id)).ended_at is not None)
    eventually(lambda: finisher.paused_reason is not None)
    assert shown_batch(store.get(stuck.id)).ended_at is None
    assert "No space left" in (finisher.paused_reason or "")
    storm.fair = True
    eventually(lambda: shown_batch(store.get(stuck.id)).ended_at is not None)
    eventually(lambda: finisher.paused_reason is None)
    finisher.stop()


def test_a_batch_that_cannot_be_read_fails_in_the_end(store: BatchStore) -> None:
    """Tried some times; the server stays well, and the batches behind do not wait for it."""
    broken = computed(store, "broken", "a")
    tries: list[bool] = []

    class BadSector(Weather):
        def results(self, store: BatchStore, batch: StoredBatch, stopping: Any) -> Any:
            if batch.id == broken.id:
                tries.append(finisher.paused_reason is None)
                raise OSError(errno.EIO, "Input/output error")
            return super().results(store, batch, stopping)

    finisher = Finisher(store, BadSector(), retry_s=0.01)
    finisher.start()
    eventually(lambda: shown_batch(store.get(broken.id)).ended_at is not None)
    eventually(lambda: not finisher.open_models())
    finisher.stop()
    assert tries == [True] * TRIES
    shown = shown_batch(store.get(broken.id))
    assert (shown.state, shown.output) == (JobState.FAILED, False)
    assert "submit it again" in (shown.error or "")


def test_a_batch_whose_files_are_gone_fails(store: BatchStore) -> None:
    """It ends all the same."""
    batch = computed(store, "gone", "a")
    (store.folder(batch.id) / RESULTS_FILE).unlink()
    finisher = Finisher(store, Weather())
    finisher.start()
    eventually(lambda: not finisher.open_models())
    finisher.stop()
    assert shown_batch(store.get(batch.id)).state is JobState.FAILED


def test_places_are_counted(store: BatchStore) -> None:
    """Open and reserved ones together; what is deleted gives its place back."""
    batch = computed(store, "one", "a")
    finisher = Finisher(store, Weather())
    assert finisher.reserve(2)
    assert not finisher.reserve(2)
    finisher.give_back()
    assert finisher.reserve(2)
    finisher.give_back()
    finisher.forget(batch.label)
    assert finisher.reserve(1)


def test_a_batch_deleted_before_it_is_added_keeps_no_place(store: BatchStore) -> None:
    """Its place is free again without a restart."""
    batch = computed(store, "brief", "a")
    store.delete(batch.id)
    finisher = Finisher(store, Weather())
    finisher.start()
    assert finisher.reserve(1)
    finisher.forget(batch.label)
    finisher.add(batch)
    eventually(lambda: not finisher.open_models())
    assert finisher.reserve(1)
    finisher.stop()


def test_a_batch_deleted_while_it_is_written_leaves_nothing(store: BatchStore) -> None:
    """The output that grew in its folder meanwhile goes too."""
    batch = computed(store, "brief", "a")

    class Race(Weather):
        def results(self, store: BatchStore, batch: StoredBatch, stopping: Any) -> Any:
            results = super().results(store, batch, stopping)
            store.delete(batch.id)
            store.folder(batch.id).mkdir()
            (store.folder(batch.id) / "output.left").write_bytes(b"a file that rmtree missed")
            return results

    finisher = Finisher(store, Race())
    finisher.start()
    eventually(lambda: not finisher.open_models())
    finisher.stop()
    assert not store.folder(batch.id).exists()


def test_only_batches_to_be_computed_wait_for_their_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of another model that needs writing only ends at the start, without a warning."""
    settings = ServerSettings(folder=tmp_path / "data")
    settings.folder.mkdir()
    with closing(BatchStore(settings.folder)) as store:
        batch = computed(store, "written", "a")

    def warnings(engine: FakeEngine) -> list[str]:
        caplog.clear()
        service = Service(settings, Catalogue({"other": engine}, {})).start()
        assert service.stop()
        return [one.getMessage() for one in caplog.records if "wait for model" in one.getMessage()]

    other = FakeEngine(DIMS, model="other")
    assert other.model not in batch.model
    assert warnings(other) == []
    with closing(BatchStore(settings.folder)) as store, store.database.transaction() as db:
        db.execute(
            "UPDATE batches SET state = 'pending', details = json_set(details, '$.output', NULL)"
        )
    assert len(warnings(other)) == 1


class Interrupted(Weather):
    """Does something in the midst of a batch's lines."""

    def __init__(self, batch: StoredBatch, then: Callable[[], None]) -> None:
        self.batch = batch
        self.then = then
        self.lines = 0

    def results(self, store: BatchStore, batch: StoredBatch, stopping: Any) -> Any:
        results = super().results(store, batch, stopping)
        if results is not None and batch.id == self.batch.id:
            results.lines = self._lines(results.lines)
        return results

    def _lines(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            self.lines += 1
            if self.lines == 100:
                self.then()
            yield line


@pytest.mark.parametrize("priority", [0, 7])
def test_a_large_output_lets_others_pass(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch, priority: int
) -> None:
    """A smaller or more urgent batch that ends meanwhile need not wait for the rest of it."""
    monkeypatch.setattr(finishing, "TURN_BYTES", 1000, raising=False)
    large = computed(store, "large", *(f"t{n}" for n in range(300)))
    later = 400 if priority else 1
    lines_before: list[int] = []

    def another() -> None:
        other = computed(store, "other", *(f"o{n}" for n in range(later)))
        store.set_priority(other.id, priority)
        assert finisher.reserve(2)
        finisher.add(other)

    weather = Interrupted(large, another)
    finisher = Finisher(store, weather, checkpoint=lambda name: lines_before.append(weather.lines))
    finisher.start()
    eventually(lambda: not finisher.open_models())
    finisher.stop()
    assert len(lines_before) == 2
    assert lines_before[0] < 150
    assert [line["key"] for line in outputs(store, large)] == [f"k{n}" for n in range(300)]


def test_the_output_of_a_deleted_batch_is_not_written_on(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer stops at the next turn, and nothing of it stays."""
    monkeypatch.setattr(finishing, "TURN_BYTES", 1000, raising=False)
    large = computed(store, "large", *(f"t{n}" for n in range(300)))

    def delete() -> None:
        store.delete(large.id)
        finisher.forget(large.label)

    weather = Interrupted(large, delete)
    finisher = Finisher(store, weather)
    finisher.start()
    eventually(lambda: not finisher.open_models() and weather.lines >= 100)
    finisher.stop()
    assert weather.lines < 150
    assert not store.folder(large.id).exists()


def test_a_server_that_stops_between_turns_leaves_no_half_output(store: BatchStore) -> None:
    """It is written anew at the next start."""
    large = computed(store, "large", *(f"t{n}" for n in range(300)))
    weather = Interrupted(large, lambda: finisher._stopping.set())
    finisher = Finisher(store, weather)
    finisher.start()
    eventually(lambda: not finisher.alive)
    assert shown_batch(store.get(large.id)).ended_at is None
    assert not list(store.folder(large.id).glob("output*"))


def test_request_files_are_written_in_constant_blocks(tmp_path: Path) -> None:
    """Many short rows and few long ones are cut into record batches of bounded size."""
    rules = RowRules(model=MODEL, dims=DIMS)
    for name, texts in (("many", ["t"] * 5000), ("long", ["x" * 1_000_000] * 10)):
        rows = (read_file_row(line, rules) for line in keyed(*texts).splitlines())
        written = write_requests(tmp_path / name, rows, CATALOGUE.own)
        assert (written.rows, written.dims) == (len(texts), DIMS)
        with pa.memory_map(str(tmp_path / name)) as source:
            reader = pa.ipc.open_file(source)
            sizes = [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)]
            assert reader.read_all()["text"].to_pylist() == texts
        assert max(sizes) <= 2048
        assert name == "many" or max(sizes) == 5
