"""Stores, request files and schedulers for the tests of the service."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embatch.service.batch import StoredBatch
from embatch.service.scheduler import Scheduler
from embatch.service.store import BatchStore
from embatch.testing import FakeEngine
from embatch.types.results import Matrix

DIMS = 8


class Service:
    """A store in a folder, and short ways to fill it and to read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = BatchStore(folder)
        self.engine = FakeEngine(DIMS, poison="POISON")
        self._schedulers: list[Scheduler] = []
        self._stores = [self.store]

    def open_store(self) -> BatchStore:
        """Another store over the same folder, as another process has it."""
        self._stores.append(BatchStore(self.folder))
        return self._stores[-1]

    def requests(self, texts: Sequence[str], name: str = "requests") -> Path:
        """An Arrow IPC file of `texts`, in record batches of seven."""
        path = self.folder / f"{name}.arrow"
        keys = pa.array([str(row) for row in range(len(texts))], pa.string())
        table = pa.table({"key": keys, "text": pa.array(texts, pa.string())})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        return path

    def create(self, texts: Sequence[str], label: str = "one", **given: Any) -> StoredBatch:
        """A batch of `texts`."""
        return self.store.create(
            label=label,
            requests=self.requests(texts, label),
            items=len(texts),
            **{"model": "fake", "dims": DIMS, **given},
        )

    def scheduler(self, **given: Any) -> Scheduler:
        """A scheduler at work, with slices of ten rows; stopped when the test ends."""
        options = {
            "slice_items": 10,
            "slice_s": None,
            "workers": 1,
            "engine_for": lambda _: self.engine,
        }
        scheduler = Scheduler(given.pop("store", self.store), **{**options, **given})
        scheduler.start()
        self._schedulers.append(scheduler)
        return scheduler

    def vectors(self, batch_id: str) -> Matrix:
        """All vectors of an ended batch, every row of which must have one."""
        blocks = list(self.store.results(batch_id, block_rows=6))
        rows = np.concatenate([block.rows for block in blocks])
        assert rows.tolist() == list(range(len(rows)))
        return np.concatenate([block.vectors for block in blocks])

    def finished(self, batch_id: str) -> StoredBatch:
        """The batch, once it has ended."""
        eventually(lambda: self.store.get(batch_id).done)
        return self.store.get(batch_id)

    def close(self) -> None:
        """Stops every scheduler, then closes every store."""
        for scheduler in self._schedulers:
            assert scheduler.stop(10.0)
        for store in self._stores:
            store.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits until `condition` holds; fails the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An empty service."""
    made = Service(tmp_path)
    yield made
    made.close()


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    """Waits for a condition, with a deadline."""
    return eventually
