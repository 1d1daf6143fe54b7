"""One file from many parts is the parts sorted by row."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.datasets.assemble import assemble_npy, assemble_parquet
from embatch.datasets.parts import PartWriter
from embatch.datasets.published import publish_part
from embatch.datasets.vector_file import part_schema
from embatch.errors import AlignmentError, InvalidRequestError, StorageError


@settings(deadline=None, max_examples=50)
@given(
    owner_of=st.lists(st.none() | st.integers(0, 40), max_size=200),
    piece=st.integers(1, 7),
    open_parts=st.integers(2, 5),
)
def test_the_file_is_all_parts_by_row(
    tmp_path_factory, staged, vectors_of, owner_of, piece, open_parts
):
    """Whatever parts the rows stand in: batches, copies among them, rows that failed left out."""
    folder = tmp_path_factory.mktemp("out")
    parts = []
    for number in range(41):
        rows = [row for row, owner in enumerate(owner_of) if owner == number]
        if rows:
            with PartWriter(folder, number=number, token="t", dims=8) as writer:
                writer.write(staged(rows, n=rows), vectors_of(rows))
                finished = writer.finish()
            parts.append(folder / publish_part(folder, finished.temp_name, number))
    good = [row for row, owner in enumerate(owner_of) if owner is not None]
    schema = part_schema(8, pa.schema([("n", pa.int64())]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embatch.datasets.assemble.OPEN_PARTS", open_parts)
        patch.setattr("embatch.datasets.assemble.cursor_rows", lambda dims: piece)
        count = assemble_parquet(parts[::-1], folder / "x.parquet", schema=schema)
        assert count == len(good)
        assert (
            assemble_npy(parts, folder / "x.npy", folder / "x.keys.parquet", schema=schema) == count
        )

    table = pq.read_table(folder / "x.parquet")
    assert table.schema.equals(schema)
    assert table["row"].to_pylist() == table["n"].to_pylist() == good
    assert table["key"].to_pylist() == [f"k{row}" for row in good]
    expected = vectors_of(good)
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(-1, 8), expected)
    array = np.load(folder / "x.npy", allow_pickle=False)
    assert array.dtype == np.float32
    assert array.flags["C_CONTIGUOUS"]
    assert np.array_equal(array, expected)
    keys = pq.read_table(folder / "x.keys.parquet")
    assert keys.column_names == ["key", "row", "text_sha256", "n"]
    assert keys["row"].to_pylist() == good
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert hidden == []


def test_more_parts_than_are_read_side_by_side(tmp_path, write_part, vectors_of):
    """Forty parts over the same rows are merged on disk in steps."""
    rows = list(range(2000))
    for number in range(40):
        write_part(number, rows[number::40])
    parts = sorted(tmp_path.glob("part-*"))
    assert assemble_parquet(parts, tmp_path / "x.parquet") == 2000
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["row"].to_pylist() == rows
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(-1, 8), vectors_of(rows))
    assert len(list(tmp_path.iterdir())) == 41


def test_a_row_in_two_parts_is_refused(tmp_path, write_part):
    """Nothing is written, and a file from before stays."""
    write_part(0, [1, 2, 3])
    write_part(1, [3, 4])
    target = tmp_path / "x.parquet"
    target.write_text("before")
    with pytest.raises(AlignmentError, match="row 3 stands in two parts"):
        assemble_parquet([tmp_path / f"part-0000{n}.parquet" for n in (0, 1)], target)
    assert target.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 3


def test_no_parts_need_a_schema(tmp_path):
    """An output of failures alone is an empty file with the right columns."""
    with pytest.raises(InvalidRequestError, match="no parts"):
        assemble_parquet([], tmp_path / "x.parquet")
    assemble_npy([], tmp_path / "x.npy", tmp_path / "k.parquet", schema=part_schema(8))
    assert np.load(tmp_path / "x.npy").shape == (0, 8)
    assert pq.read_table(tmp_path / "k.parquet").column_names == ["key", "row", "text_sha256"]


def test_parts_of_other_columns_are_refused(tmp_path, write_part):
    """Vectors of other dims do not meet in one file."""
    write_part(0, [1])
    write_part(1, [2], dims=9)
    with pytest.raises(InvalidRequestError, match=r"part-00001\.parquet has other columns"):
        assemble_parquet(
            [tmp_path / f"part-0000{n}.parquet" for n in (0, 1)], tmp_path / "x.parquet"
        )


def test_a_missing_part_is_named(tmp_path):
    """A part that is gone is the disk's doing."""
    with pytest.raises(StorageError, match=r"part-00000\.parquet is gone"):
        assemble_parquet([tmp_path / "part-00000.parquet"], tmp_path / "x.parquet")


def test_a_full_disk_is_told(tmp_path, write_part, monkeypatch):
    """The target is named, and nothing is left."""
    write_part(0, range(30_000), dims=64)
    monkeypatch.setattr("embatch.datasets.durable._locked", full_disk)
    with pytest.raises(StorageError, match=r"the disk is full while writing .*x\.parquet"):
        assemble_parquet([tmp_path / "part-00000.parquet"], tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def full_disk(target):
    path = target.with_name(".full.tmp")
    path.symlink_to("/dev/full")
    return path, os.open("/dev/null", os.O_RDONLY)
