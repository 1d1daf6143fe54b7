"""The store keeps batches for its callers: whole, once, and readable when they end."""

import errno
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from embatch.errors import (
    BatchFailedError,
    BatchNotCompleteError,
    InputError,
    InvalidRequestError,
    JournalError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.service.store import ORPHAN_AGE_S, BatchStore
from embatch.types.state import JobState

TEXTS = [f"text {row}" for row in range(20)]


def test_a_new_batch_waits_and_can_be_looked_up(service: Any) -> None:
    """A batch is pending from the call on, under its id and its label."""
    batch = service.create(TEXTS, priority=7, prompt="p: ", details='{"display_name": "mine"}')
    assert batch.state is JobState.PENDING
    assert (batch.items, batch.priority, batch.prompt) == (20, 7, "p: ")
    assert batch.progress.pending == 20
    assert service.store.get(batch.id) == service.store.find("one") == batch
    assert service.store.find("other") is None
    assert service.open_store().get(batch.id) == batch


def test_the_same_label_twice_is_one_batch(service: Any) -> None:
    """A repeated create gives the batch that exists; something else under its label is refused."""
    batch = service.create(TEXTS)
    assert service.create(TEXTS) == batch
    with pytest.raises(InvalidRequestError, match="already bears the label 'one'"):
        service.create(TEXTS[:5])


def test_callers_who_race_for_a_label_get_one_batch(service: Any) -> None:
    """Of many who create one label at once, all get the same batch and one folder stays."""
    path = service.requests(TEXTS)
    stores = [service.open_store() for _ in range(4)]
    start = threading.Barrier(len(stores))
    ids: list[str] = []

    def create(store: BatchStore) -> None:
        start.wait()
        batch = store.create(label="x", requests=path, items=len(TEXTS), model="fake", dims=8)
        ids.append(batch.id)

    threads = [threading.Thread(target=create, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1
    assert [folder.name for folder in (service.folder / "batches").iterdir()] == [ids[0]]


def test_requests_that_are_not_as_said_are_refused(service: Any, tmp_path: Path) -> None:
    """A wrong number of items, a missing file and a file of something else are named at once."""
    path = service.requests(TEXTS)
    common = {"label": "x", "model": "fake", "dims": 8}
    with pytest.raises(InputError, match=r"19 items .* holds 20"):
        service.store.create(requests=path, items=19, **common)
    with pytest.raises(InputError, match=r"gone\.arrow cannot be read \(No such file"):
        service.store.create(requests=tmp_path / "gone.arrow", items=20, **common)
    (tmp_path / "plain.txt").write_text("not an arrow file")
    with pytest.raises(InputError, match="not a whole Arrow IPC file"):
        service.store.create(requests=tmp_path / "plain.txt", items=20, **common)
    with pytest.raises(InputError, match="holds 0"):
        service.create([])
    assert list((service.folder / "batches").iterdir()) == []


def test_the_batch_outlives_the_callers_file(service: Any) -> None:
    """Once created, a batch needs the request file no more, wherever the file lay."""
    batch = service.create(TEXTS)
    (service.folder / "one.arrow").unlink()
    service.scheduler()
    assert service.finished(batch.id).state is JobState.COMPLETED


def test_requests_on_another_filesystem_are_copied(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a link is not possible, the requests are copied."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    batch = service.create(TEXTS)
    assert (service.store.folder(batch.id) / "requests.arrow").stat().st_nlink == 1
    service.scheduler()
    assert (service.vectors(service.finished(batch.id).id) == service.engine.expected(TEXTS)).all()


def test_no_room_for_requests_leaves_nothing_behind(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at creation is worth another try, and no half batch stays."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ProviderUnavailableError, match="No space left"):
        service.create(TEXTS)
    assert service.store.find("one") is None
    assert list((service.folder / "batches").iterdir()) == []


def test_a_batch_that_the_database_refuses_leaves_nothing_behind(service: Any) -> None:
    """The requests placed for it are removed."""
    service.store.database.rows("PRAGMA query_only = 1")
    with pytest.raises(ProviderUnavailableError, match="readonly"):
        service.create(TEXTS)
    assert list((service.folder / "batches").iterdir()) == []


def test_batches_are_listed_newest_first(service: Any) -> None:
    """Pages follow one another without a gap."""
    labels = [service.create(TEXTS[:1], f"b{number}").label for number in range(5)]
    first = service.store.page(limit=3)
    rest = service.store.page(before_seq=first[-1].seq, limit=3)
    assert [batch.label for batch in first + rest] == labels[::-1]


def test_an_unknown_batch_is_not_found(service: Any) -> None:
    """Every call about a batch that is not there says so."""
    for call in ("get", "cancel", "delete", "results"):
        with pytest.raises(NotFoundError, match="no batch nope"):
            getattr(service.store, call)("nope")
    with pytest.raises(NotFoundError, match="no batch nope"):
        service.store.set_priority("nope", 1)


def test_results_wait_for_the_end(service: Any) -> None:
    """Results of a batch under way are refused with its state."""
    batch = service.create(TEXTS)
    with pytest.raises(BatchNotCompleteError, match=r"not yet completed .*pending"):
        service.store.results(batch.id)


def test_a_cancelled_batch_stays_cancelled(service: Any) -> None:
    """Cancelling twice is fine, and a cancelled batch without rows has empty results."""
    batch = service.create(TEXTS)
    cancelled = service.store.cancel(batch.id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.ended_at is not None
    assert service.store.cancel(batch.id) == cancelled
    assert list(service.store.results(batch.id)) == []


def test_deleting_removes_row_and_files(service: Any) -> None:
    """A deleted batch is gone from the list and from the disk, and its label is free."""
    batch = service.create(TEXTS)
    service.store.delete(batch.id)
    assert not service.store.folder(batch.id).exists()
    assert service.store.page() == []
    assert service.create(TEXTS).id != batch.id


def test_failed_rows_come_with_their_reason(service: Any) -> None:
    """Rows that failed are in the results, in their place, with code and message."""
    texts = [*TEXTS[:7], "POISON", *TEXTS[8:]]
    batch = service.create(texts)
    service.scheduler()
    assert service.finished(batch.id).progress.failed == 1
    blocks = list(service.store.results(batch.id, block_rows=6))
    assert [row for block in blocks for row, _ in block.errors] == [7]
    assert blocks[1].rows.tolist() == [6, 8, 9, 10, 11]
    truth = service.engine.expected(texts)
    for block in blocks:
        assert (block.vectors == truth[block.rows]).all()
        assert len(block.tokens) == len(block.truncated) == len(block.rows)


def test_a_result_file_that_lost_data_is_not_read_as_zeros(service: Any) -> None:
    """A result file shorter than the progress says is an error, never short or empty vectors."""
    batch = service.create(TEXTS)
    service.scheduler()
    service.finished(batch.id)
    os.truncate(service.store.folder(batch.id) / "results.bin", 100)
    with pytest.raises(BatchFailedError, match="ends before its last row"):
        list(service.store.results(batch.id))


def test_only_old_orphans_are_swept(service: Any) -> None:
    """A folder without a row goes once nobody can still be creating it."""
    batch = service.create(TEXTS)
    orphan = service.store.folder("orphan")
    orphan.mkdir()
    service.store.sweep()
    assert orphan.exists()
    late = BatchStore(service.folder, clock=lambda: time.time() + ORPHAN_AGE_S + 60)
    late.sweep()
    late.close()
    assert not orphan.exists()
    assert service.store.folder(batch.id).exists()


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    """A schema that this version does not know is left alone."""
    with sqlite3.connect(tmp_path / "service.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalError, match="schema 99"):
        BatchStore(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A damaged database is named, not replaced."""
    (tmp_path / "service.db").write_bytes(b"this is not a database at all" * 50)
    with pytest.raises(JournalError, match=r"service\.db is broken"):
        BatchStore(tmp_path)


def test_the_status_of_a_large_batch_is_instant(service: Any) -> None:
    """A hundred looks at a batch of 100,000 rows take less than a second."""
    batch = service.create(["x"] * 100_000)
    begun = time.perf_counter()
    for _ in range(100):
        service.store.get(batch.id)
    assert time.perf_counter() - begun < 1.0
