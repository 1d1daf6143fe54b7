"""kill -9 of a process that embeds batches: nothing is lost, at most one slice is redone.

This file is also the program of that process: see `work` at its end.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embatch.service.batch import StoredBatch
from embatch.service.scheduler import Scheduler
from embatch.service.store import CHECKPOINTS, BatchStore
from embatch.testing import FakeEngine
from embatch.types.results import Embedded
from embatch.types.state import JobState

DIMS = 16
SLICE = 20
CALL_S = 0.002
"""What the slowed engine needs for a slice: several writes of the store, so kills hit all steps."""

DEATHS = [
    ("service.claimed", 1),
    *((name, nth) for name in CHECKPOINTS[3:] for nth in (1, 4)),
]
"""Steps of a worker, and which passing of them is the last."""


def texts_of(label: str, items: int) -> list[str]:
    return [f"{label} row {row}" for row in range(items)]


class Workers:
    """Real processes over one store's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = BatchStore(folder)
        self._running: list[subprocess.Popen[bytes]] = []

    def create(self, label: str, items: int, priority: int = 0) -> StoredBatch:
        """A batch of `items` texts."""
        path = self.folder / f"{label}.arrow"
        table = pa.table({"text": texts_of(label, items)})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=64)
        return self.store.create(
            label=label, requests=path, items=items, model="fake", dims=DIMS, priority=priority
        )

    def start(
        self, die_at: str = "", nth: int = 1, call_s: float = CALL_S
    ) -> subprocess.Popen[bytes]:
        """A process that works, and kills itself the `nth` time it passes `die_at`."""
        command = [sys.executable, __file__, str(self.folder), die_at, str(nth), str(call_s)]
        process = subprocess.Popen(command)
        self._running.append(process)
        return process

    def finish(self, batch: StoredBatch, timeout_s: float = 60.0) -> StoredBatch:
        """The batch, once it is done."""
        eventually(lambda: self.store.get(batch.id).done, timeout_s)
        return self.store.get(batch.id)

    def assert_whole(self, batch: StoredBatch) -> None:
        """Every row is there once, with the very vector of its text."""
        blocks = list(self.store.results(batch.id))
        rows = np.concatenate([block.rows for block in blocks])
        assert rows.tolist() == list(range(batch.items))
        vectors = np.concatenate([block.vectors for block in blocks])
        truth = FakeEngine(DIMS).expected(texts_of(batch.label, batch.items))
        assert vectors.tobytes() == truth.tobytes()

    def log(self) -> list[list[str]]:
        """What the processes computed, a line a slice: pid, label, first row, rows."""
        lines = (self.folder / "computed.log").read_text().splitlines()
        return [line.split() for line in lines]

    def close(self) -> None:
        """Ends every process."""
        for process in self._running:
            process.kill()
            process.wait()
        self.store.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits until `condition` holds; fails the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """A store without workers yet."""
    made = Workers(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(("name", "nth"), DEATHS)
def test_killed_at_any_step_it_goes_on_where_it_stopped(
    workers: Workers, name: str, nth: int
) -> None:
    """A worker that dies at a named step costs one slice at most, and its successor no wait."""
    batch = workers.create("one", 110)
    first = workers.start(name, nth)
    assert first.wait(30) == -signal.SIGKILL
    before = workers.store.get(batch.id)
    assert before.state is JobState.PROCESSING
    workers.start()
    after = workers.finish(batch)
    workers.assert_whole(after)
    assert after.items_redone <= SLICE
    begun_again = before.rows_done
    second = [entry for entry in workers.log() if entry[0] != str(first.pid)]
    assert second[0][1:3] == ["one", str(begun_again)]


def test_killed_again_and_again_at_random_it_still_ends_whole(workers: Workers) -> None:
    """Twelve kills at random moments: every row bit-equal, at most one slice redone for each."""
    batch = workers.create("one", 2000)
    chance = random.Random(20_240_917)
    kills = 0
    while kills < 12 and not workers.store.get(batch.id).done:
        reached = workers.store.get(batch.id).rows_done + chance.randrange(1, 150)
        process = workers.start()
        eventually(
            lambda reached=reached: (
                (now := workers.store.get(batch.id)).rows_done >= reached or now.done
            )
        )
        process.kill()
        process.wait()
        kills += 1
    workers.start()
    after = workers.finish(batch)
    workers.assert_whole(after)
    assert kills >= 6
    assert after.items_redone <= kills * SLICE
    assert workers.store.items_redone() == after.items_redone
    computed = sum(int(rows) for _, _, _, rows in workers.log())
    assert computed - batch.items <= after.items_redone


@pytest.mark.parametrize("name", ["service.placed", "service.created"])
def test_killed_while_creating_there_is_one_batch_or_none(workers: Workers, name: str) -> None:
    """A caller that dies in `create` calls again with its label: one batch, whole."""
    path = workers.folder / "one.arrow"
    table = pa.table({"text": texts_of("one", 50)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    process = subprocess.Popen([sys.executable, __file__, str(workers.folder), name, "create"])
    assert process.wait(30) == -signal.SIGKILL
    found = workers.store.find("one")
    assert (found is not None) == (name == "service.created")
    again = workers.store.create(label="one", requests=path, items=50, model="fake", dims=DIMS)
    assert found is None or found.id == again.id
    assert len(workers.store.page()) == 1
    workers.start()
    workers.assert_whole(workers.finish(again))


def test_two_processes_share_batches_and_compute_nothing_twice(workers: Workers) -> None:
    """Two workers on one store take different batches; each row is computed by one of them."""
    workers.start()
    workers.start()
    until, made = time.monotonic() + 60, 0
    while made < 8 or len({pid for pid, *_ in workers.log()}) < 2:
        assert time.monotonic() < until, "one worker has done everything"
        batches = [workers.create(f"b{made + number}", 10 * SLICE) for number in range(4)]
        made += len(batches)
        for batch in batches:
            workers.assert_whole(workers.finish(batch))
    slices = [(label, first) for _, label, first, _ in workers.log()]
    assert len(slices) == len(set(slices)) == 10 * made
    assert workers.store.items_redone() == 0


def test_a_worker_takes_over_from_one_that_dies_beside_it(workers: Workers) -> None:
    """Of two workers one is killed mid-batch: the other finishes all, a slice a batch is lost."""
    batches = [workers.create(f"b{number}", 40 * SLICE) for number in range(2)]
    processes = [workers.start(), workers.start()]
    eventually(lambda: all(workers.store.get(batch.id).rows_done > 0 for batch in batches))
    processes[0].kill()
    for batch in batches:
        after = workers.finish(batch)
        workers.assert_whole(after)
        assert after.items_redone <= SLICE


def test_an_urgent_batch_submitted_late_ends_first(workers: Workers) -> None:
    """A high-priority batch of another process overtakes a long one within a slice."""
    slow = workers.create("slow", 300 * SLICE)
    workers.start()
    eventually(lambda: workers.store.get(slow.id).rows_done > 0)
    urgent = workers.create("urgent", 2 * SLICE, priority=10)
    begun = time.monotonic()
    workers.finish(urgent)
    assert time.monotonic() - begun < 5.0
    assert not workers.store.get(slow.id).done
    workers.assert_whole(urgent)
    after = workers.finish(slow)
    workers.assert_whole(after)
    assert after.items_redone == 0


class LoggingEngine(FakeEngine):
    """Slow, and writes down each slice that it computed."""

    def __init__(self, log: Path, call_s: float) -> None:
        super().__init__(DIMS, delay_s=call_s)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
        made = super().embed(texts, **options)
        label, _, first = texts[0].split()
        os.write(self._log, f"{os.getpid()} {label} {first} {len(texts)}\n".encode())
        return made


def work(folder: Path, die_at: str, nth: str, call_s: float = CALL_S) -> None:
    """The process under test: works for ever, or creates one batch; dies where it is told to."""
    left = 1 if nth == "create" else int(nth)

    def checkpoint(name: str) -> None:
        nonlocal left
        if name == die_at:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    store = BatchStore(folder, checkpoint=checkpoint)
    if nth == "create":
        store.create(label="one", requests=folder / "one.arrow", items=50, model="fake", dims=DIMS)
        return
    engine = LoggingEngine(folder / "computed.log", call_s)
    scheduler = Scheduler(
        store, lambda _: engine, slice_items=SLICE, slice_s=None, idle_poll_s=0.02
    )
    scheduler.start()
    signal.pause()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3], *map(float, sys.argv[4:]))
