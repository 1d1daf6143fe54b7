"""Verifying an output finds every kind of damage and names its place."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from embatch.datasets.manifest import PartEntry
from embatch.datasets.verify import verify_parts


@pytest.fixture
def output(tmp_path, write_part):
    """Three sound parts and the manifest's list of them."""
    entries = []
    for number, rows in enumerate([range(0, 900, 2), range(1, 900, 2), range(900, 1000)]):
        finished = write_part(number, list(rows))
        entries.append(entry(number, finished))
    return tmp_path, entries


def entry(number, finished):
    return PartEntry(
        name=f"part-{number:05d}.parquet",
        rows=finished.rows,
        sha256=finished.sha256,
        row_min=finished.row_min,
        row_max=finished.row_max,
    )


def verify(folder, entries, **options):
    return verify_parts(
        sorted(folder.glob("part-*.parquet")),
        dims=8,
        normalized=True,
        expected=entries,
        work=folder / "work",
        **options,
    )


@pytest.mark.parametrize("memory_bytes", [2 * 256 * 8, 64 << 20])
def test_a_sound_output_passes(output, memory_bytes):
    """All rows are counted and nothing is left behind, in much memory or little."""
    folder, entries = output
    report = verify(folder, entries, memory_bytes=memory_bytes)
    assert report.sound
    assert (report.parts, report.rows, report.problem_count) == (3, 1000, 0)
    assert list((folder / "work").iterdir()) == []


def test_a_flipped_byte_is_found(output, vectors_of):
    """By the page's checksum, and by the file's SHA-256."""
    folder, entries = output
    path = folder / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(vectors_of([401]).tobytes())] ^= 1
    path.write_bytes(bytes(data))
    problems = verify(folder, entries).problems
    assert "part-00001.parquet: its bytes are not those that were written (SHA-256)" in problems
    assert any("part-00001.parquet is broken" in problem for problem in problems)
    assert len(problems) == 2


def test_vectors_swapped_between_rows_are_found(output):
    """A file that is sound in itself, but not the one that was written."""
    folder, entries = output
    path = folder / "part-00001.parquet"
    table = pq.read_table(path)
    swapped = table["embedding"].take(list(range(table.num_rows))[::-1])
    pq.write_table(table.set_column(3, table.schema.field(3), swapped), path)
    report = verify(folder, entries)
    assert report.problems == (
        "part-00001.parquet: its bytes are not those that were written (SHA-256)",
    )


def test_a_missing_part_is_found(output):
    """The manifest knows it."""
    folder, entries = output
    (folder / "part-00002.parquet").unlink()
    assert verify(folder, entries).problems == ("part-00002.parquet: the part is missing",)


def test_a_part_too_many_is_found(output, write_part):
    """The manifest does not know it."""
    folder, entries = output
    write_part(7, [5000])
    report = verify(folder, entries)
    assert report.problems == ("part-00007.parquet: the manifest does not list it",)
    assert verify(folder, None).sound


@pytest.mark.parametrize("memory_bytes", [2 * 256 * 8, 64 << 20])
def test_a_key_and_row_in_two_parts_are_found(output, memory_bytes):
    """Both parts and rows are named."""
    folder, _ = output
    shutil.copy(folder / "part-00002.parquet", folder / "part-00003.parquet")
    report = verify(folder, None, memory_bytes=memory_bytes)
    assert report.problem_count == 200
    assert len(report.problems) == 100
    twice = "the key stands in part-00002.parquet, row 907, too"
    assert f"part-00003.parquet: row 907, key 'k907': {twice}" in report.problems


def test_a_row_number_that_stands_twice_is_found(output, write_part, staged):
    """Also when the keys differ."""
    folder, _ = output
    table = staged([998, 2000])
    write_part(3, [998, 2000], table=table.set_column(0, "key", [["other", "k2000"]]))
    assert verify(folder, None).problems == (
        "part-00003.parquet: row 998, key 'other': the row stands in part-00002.parquet, "
        "row 998, too",
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda m: m * np.nan, "the vector is not finite"),
        (lambda m: m * 2, "the vector is not of length 1"),
        (lambda m: m[:, :7], "vectors have 7 dims, not 8"),
    ],
)
def test_bad_vectors_are_found(output, write_part, vectors_of, spoil, problem):
    """Part, row and key are named."""
    folder, entries = output
    finished = write_part(3, [3000], matrix=spoil(vectors_of([3000])))
    [found] = verify(folder, [*entries, entry(3, finished)]).problems
    assert found.startswith("part-00003.parquet: ")
    assert problem in found
