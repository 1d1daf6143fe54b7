"""Parts hold every vector beside its own key, appear whole, and tell when they are damaged."""

import hashlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.datasets.column_types import KEPT_TEXT
from embatch.datasets.parts import (
    PartWriter,
    check_part,
    part_rows,
    part_vectors_at,
    read_part,
)
from embatch.datasets.published import part_number, publish_part
from embatch.errors import InvalidRequestError, NotFoundError, StorageError


def test_a_part_gives_back_what_was_written(tmp_path, staged, vectors_of):
    """Columns, types, order and every bit of the vectors, whatever pieces they were written in."""
    rows = list(range(5, 30_005))
    table = staged(rows, lang=["en"] * len(rows)).append_column(KEPT_TEXT, pa.array(["x"] * 30_000))
    matrix = vectors_of(rows, 96)
    with PartWriter(tmp_path, number=12, token="t1", dims=96) as writer:
        start = 0
        for size in (1, 700, 20_000, 299, 9_000):
            writer.write(table.slice(start, size), matrix[start : start + size])
            start += size
        finished = writer.finish()
    name = publish_part(tmp_path, finished.temp_name, 12)
    path = tmp_path / name

    assert name == "part-00012.parquet"
    assert part_number(path) == 12
    assert finished.temp_name == ".part-00012.t1.tmp"
    assert (finished.rows, finished.row_min, finished.row_max) == (30_000, 5, 30_004)
    assert finished.size_bytes == path.stat().st_size
    assert finished.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    schema = pq.read_schema(path)
    assert schema.names == ["key", "row", "text_sha256", "embedding", "lang", "text"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 96)
    assert schema.field("text_sha256").type == pa.binary(32)
    pieces = list(read_part(path))
    read = pa.Table.from_batches([batch for batch, _ in pieces])
    assert read["key"].to_pylist() == table["key"].to_pylist()
    assert read["text_sha256"].to_pylist() == table["text_sha256"].to_pylist()
    assert np.array_equal(np.concatenate([block for _, block in pieces]), matrix)
    assert part_rows(path).tolist() == rows
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_callers_buffer_may_be_used_again(tmp_path, staged, vectors_of):
    """Vectors that wait for their row group are not changed by the next piece."""
    matrix = vectors_of(range(20))
    buffer = np.empty((10, 8), np.float32)
    with PartWriter(tmp_path, number=0, token="t", dims=8) as writer:
        for start in (0, 10):
            buffer[:] = matrix[start : start + 10]
            writer.write(staged(range(start, start + 10)), buffer)
        publish_part(tmp_path, writer.finish().temp_name, 0)
    read = np.concatenate([block for _, block in read_part(tmp_path / "part-00000.parquet")])
    assert np.array_equal(read, matrix)


def test_only_the_row_numbers_have_statistics(tmp_path, write_part):
    """They tell which row group holds a row; statistics of vectors cost half the speed."""
    write_part(0, range(10))
    group = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert [c.path_in_schema for c in columns if c.is_stats_set] == ["row"]


def test_vectors_are_found_by_row(tmp_path, write_part, vectors_of):
    """In any order, twice, across row groups; rows that are not there are marked."""
    rows = list(range(0, 40_000, 2))
    write_part(3, rows, dims=256)
    asked = [39_998, 0, 7, 0, 100_000, -1, 20_000]
    found, matrix = part_vectors_at(tmp_path / "part-00003.parquet", asked)
    assert found.tolist() == [True, True, False, True, False, False, True]
    assert np.array_equal(matrix, vectors_of([39_998, 0, 0, 20_000], 256))


def test_publishing_may_be_redone(tmp_path, write_part):
    """A part that has its name already is fine; one that is nowhere is not."""
    finished = write_part(1, [1])
    assert publish_part(tmp_path, finished.temp_name, 1) == "part-00001.parquet"
    with pytest.raises(NotFoundError, match="part 2 is lost"):
        publish_part(tmp_path, ".part-00002.x.tmp", 2)


@pytest.mark.parametrize("broken", ["exception", "no finish", "abort"])
def test_a_refused_writer_deletes_its_own_file(tmp_path, staged, vectors_of, broken):
    """And no other's: another lease's file of the same part stays."""
    other = tmp_path / ".part-00001.other.tmp"
    other.touch()
    writer = PartWriter(tmp_path, number=1, token="mine", dims=8)
    if broken == "exception":
        with suppress(RuntimeError), writer:
            writer.write(staged([1]), vectors_of([1]))
            raise RuntimeError
    elif broken == "no finish":
        with writer:
            writer.write(staged([1]), vectors_of([1]))
    else:
        writer.write(staged([1]), vectors_of([1]))
        assert writer.path.exists()
        writer.abort()
        writer.abort()
    assert list(tmp_path.iterdir()) == [other]


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, staged, vectors_of):
    """The error names the file; the rest of the part is removed."""
    (tmp_path / ".part-00001.t.tmp").symlink_to("/dev/full")
    writer = PartWriter(tmp_path, number=1, token="t", dims=512)
    table, matrix = staged(range(9_000)), vectors_of(range(9_000), 512)
    with pytest.raises(StorageError, match=r"the disk is full while writing .*part-00001"):
        writer.write(table, matrix)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        ([1, 2], (1, 8), "cannot have vectors"),
        ([1, 2], (2, 9), "cannot have vectors"),
        ([2, 1], (2, 8), "do not ascend"),
        ([1, 1], (2, 8), "do not ascend"),
    ],
)
def test_rows_and_vectors_that_do_not_fit_are_refused(tmp_path, staged, rows, shape, message):
    """A vector too few or a row out of order never reaches the file."""
    with PartWriter(tmp_path, number=1, token="t", dims=8) as writer:
        with pytest.raises(InvalidRequestError, match=message):
            writer.write(staged(rows), np.ones(shape, np.float32))
        with pytest.raises(InvalidRequestError, match="has no rows"):
            writer.finish()


def test_a_sound_part_has_no_problems(tmp_path, write_part):
    """The report says what the manifest and the journal need."""
    finished = write_part(4, range(7, 3_000, 3))
    report = check_part(tmp_path / "part-00004.parquet", dims=8, normalized=True)
    assert report.problems == ()
    assert (report.rows, report.row_min, report.row_max) == (998, 7, 2998)
    assert (report.sha256, report.size_bytes) == (finished.sha256, finished.size_bytes)


def damaged(kind, matrix):
    matrix = matrix.copy()
    if kind == "nan":
        matrix[3, 2] = np.nan
    elif kind == "infinite":
        matrix[3, 2] = np.inf
    elif kind == "long":
        matrix[3] *= 1.01
    elif kind == "zero":
        matrix[3] = 0
    return matrix


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("nan", "part-00001.parquet: row 3, key 'k3': the vector is not finite"),
        ("infinite", "part-00001.parquet: row 3, key 'k3': the vector is not finite"),
        ("long", "part-00001.parquet: row 3, key 'k3': the vector is not of length 1"),
        ("zero", "part-00001.parquet: row 3, key 'k3': the vector is not of length 1"),
    ],
)
def test_a_bad_vector_is_named(tmp_path, write_part, vectors_of, kind, problem):
    """Part, row and key of the first one."""
    write_part(1, range(9), matrix=damaged(kind, vectors_of(range(9))))
    path = tmp_path / "part-00001.parquet"
    assert check_part(path, dims=8, normalized=True).problems == (problem,)
    expected = (problem,) if kind in ("nan", "infinite") else ()
    assert check_part(path, dims=8, normalized=False).problems == expected


def test_many_bad_vectors_are_counted(tmp_path, write_part, vectors_of):
    """The first is named, the others are a number."""
    write_part(1, range(9), matrix=vectors_of(range(9)) * 2)
    [problem] = check_part(tmp_path / "part-00001.parquet", dims=8, normalized=True).problems
    assert problem.endswith("(and 8 more)")


def test_a_part_that_cannot_be_read_is_a_problem_not_a_crash(tmp_path, write_part):
    """Other dims, no footer, no file, rows that descend."""
    write_part(1, range(9))
    path = tmp_path / "part-00001.parquet"
    assert "8 dims, not 9" in check_part(path, dims=9, normalized=True).problems[0]
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(8, -1, -1))), path)
    [problem] = check_part(path, dims=8, normalized=True).problems
    assert "row 7, key 'k7': the row number does not ascend (and 7 more)" in problem
    path.write_bytes(path.read_bytes()[:-9])
    [problem] = check_part(path, dims=8, normalized=True).problems
    assert "broken" in problem
    path.unlink()
    [problem] = check_part(path, dims=8, normalized=True).problems
    assert "gone" in problem


def test_a_flipped_bit_in_a_vector_is_found_by_reading(tmp_path, write_part):
    """Pages bear checksums: a part that rotted is never taken for vectors."""
    write_part(1, range(500), dims=64)
    path = tmp_path / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="broken"):
        list(read_part(path))
