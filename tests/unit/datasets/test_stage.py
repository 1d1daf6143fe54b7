"""A stage is frozen, and any of its items can be taken out of it."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.datasets.stage import CopySpool, StageFile, write_stage
from embatch.errors import InvalidRequestError, StorageError
from embatch.providers.base import StagedItems


def test_a_stage_gives_back_its_items_in_order(tmp_path, staged):
    """Batches are small however the table was cut, and columns keep their types."""
    table = staged(list(range(20_000)), lang=["en"] * 20_000)
    (tmp_path / "stage").mkdir()
    stage: StagedItems = write_stage(tmp_path / "stage" / "0.arrow", table)
    batches = list(stage.read())
    assert [batch.num_rows for batch in batches] == [8192, 8192, 3616]
    assert pa.Table.from_batches(batches).equals(table)
    assert (stage.items, stage.path) == (20_000, tmp_path / "stage" / "0.arrow")
    assert [p.name for p in stage.path.parent.iterdir()] == ["0.arrow"]


def test_a_stage_is_written_from_batches_too(tmp_path, staged):
    """An iterator of record batches is enough."""
    table = staged(list(range(10)))
    stage = write_stage(tmp_path / "0.arrow", iter(table.to_batches(max_chunksize=3)))
    assert pa.Table.from_batches(list(stage.read())).equals(table)


@settings(deadline=None, max_examples=50)
@given(indices=st.lists(st.integers(0, 24), max_size=40))
def test_items_are_taken_by_index(staged, indices):
    """Any items, in the order asked, also twice."""
    with tempfile.TemporaryDirectory() as folder:
        batches = staged(list(range(100, 125))).to_batches(max_chunksize=4)
        stage = write_stage(Path(folder) / "s.arrow", iter(batches))
        assert stage.take(indices)["row"].to_pylist() == [100 + index for index in indices]


def test_an_index_outside_is_refused(tmp_path, staged):
    """The error says what the stage holds."""
    stage = write_stage(tmp_path / "s.arrow", staged([1, 2]))
    with pytest.raises(InvalidRequestError, match=r"0\.\.1"):
        stage.take([2])


def test_a_stage_that_is_gone_or_broken_says_so(tmp_path, staged):
    """Both are the disk's doing."""
    stage = write_stage(tmp_path / "s.arrow", staged([1, 2]))
    stage.path.write_bytes(stage.path.read_bytes()[:-30])
    with pytest.raises(StorageError, match="broken"):
        list(StageFile(stage.path).read())
    stage.path.unlink()
    with pytest.raises(StorageError, match="gone"):
        list(stage.read())


def test_a_writer_that_breaks_off_leaves_nothing(tmp_path, staged):
    """The stage before it stays, and no temporary file."""
    stage = write_stage(tmp_path / "s.arrow", staged([1]))

    def broken():
        yield from staged([2]).to_batches()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_stage(tmp_path / "s.arrow", broken())
    assert stage.take([0])["row"].to_pylist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["s.arrow"]


def copies(owners, first_row=1000):
    """Copies in row order, with these owners."""
    return pa.table(
        {
            "key": [str(first_row + i) for i in range(len(owners))],
            "row": pa.array(range(first_row, first_row + len(owners)), pa.int64()),
            "owner_row": pa.array(owners, pa.int64()),
        }
    )


@settings(deadline=None, max_examples=50)
@given(
    runs=st.lists(st.lists(st.integers(0, 12), max_size=20), max_size=6),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=3),
)
def test_copies_come_out_by_owner(runs, sizes):
    """Groups hold all copies once, by owner, filled to their size, each sorted by row.

    The size of the groups may change between a start and the next.
    """
    with tempfile.TemporaryDirectory() as folder:
        spool = CopySpool(Path(folder))
        row, expected = 1000, []
        for owners in runs:
            spool.add(copies(owners, row))
            spool.flush()
            expected += [(owner, row + i) for i, owner in enumerate(owners)]
            row += len(owners)
        expected.sort()
        done = 0
        for size in [*sizes, sizes[-1]]:
            groups = list(CopySpool(Path(folder), runs=spool.runs).merge(size, skip_rows=done))
            assert sum(group.num_rows for group in groups) == len(expected) - done
            if not groups:
                break
            taken = groups[0]
            got = list(zip(taken["owner_row"].to_pylist(), taken["row"].to_pylist(), strict=True))
            assert [row for _, row in got] == sorted(row for _, row in got)
            assert sorted(got) == expected[done : done + size]
            assert taken["key"].to_pylist() == [str(row) for _, row in got]
            done += taken.num_rows


def test_all_groups_together_are_all_copies(tmp_path):
    """Many runs, many groups: nothing is lost, nothing twice."""
    rng = np.random.default_rng(5)
    spool = CopySpool(tmp_path)
    for start in range(0, 5000, 250):
        spool.add(copies(rng.integers(0, 900, 250).tolist(), start))
        spool.flush()
    groups = list(spool.merge(333))
    assert [group.num_rows for group in groups] == [333] * 15 + [5]
    assert sorted(row for group in groups for row in group["row"].to_pylist()) == list(range(5000))
    highest = [max(group["owner_row"].to_pylist()) for group in groups]
    lowest = [min(group["owner_row"].to_pylist()) for group in groups]
    assert all(low >= high for low, high in zip(lowest[1:], highest[:-1], strict=True))


def test_runs_after_the_record_are_dropped(tmp_path):
    """A spool opened with the journaled number of runs forgets what came later."""
    spool = CopySpool(tmp_path)
    for start in (0, 10, 20):
        spool.add(copies([1, 2], start))
        assert spool.flush() == start // 10 + 1
    again = CopySpool(tmp_path, runs=2)
    again.add(copies([3], 50))
    assert again.flush() == 3
    [group] = again.merge(100)
    assert group["row"].to_pylist() == [0, 1, 10, 11, 50]


def test_a_spool_says_when_it_is_full(tmp_path, monkeypatch):
    """By rows, or by bytes where kept columns are long."""
    monkeypatch.setattr("embatch.datasets.stage.SPOOL_ROWS", 10)
    spool = CopySpool(tmp_path)
    spool.add(copies([1] * 9))
    assert not spool.full
    spool.add(copies([1]))
    assert spool.full
    spool.flush()
    assert not spool.full
    monkeypatch.setattr("embatch.datasets.stage.SPOOL_BYTES", 10)
    spool.add(copies([1]))
    assert spool.full
