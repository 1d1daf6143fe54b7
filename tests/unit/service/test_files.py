"""Texts come out of a request file as they went in, whatever its layout."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embatch.errors import InputError
from embatch.service.files import EMBEDDED, FAILED, Requests, ResultFile, SliceResult, lock_batch
from embatch.types.embedding import RowError


def write(path: Path, chunks: Sequence[Sequence[str | None]], kind: pa.DataType) -> Path:
    schema = pa.schema([("key", pa.int64()), ("text", kind)])
    with pa.ipc.new_file(str(path), schema) as writer:
        for chunk in chunks:
            writer.write(pa.record_batch([list(range(len(chunk))), list(chunk)], schema=schema))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunks=st.lists(st.lists(st.text(max_size=5), max_size=6), min_size=1, max_size=6),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    large=st.booleans(),
)
def test_slices_of_any_size_read_every_text_once(
    tmp_path: Path, chunks: list[list[str]], steps: list[int], large: bool
) -> None:
    """However the file is chunked and the slices are cut, the texts are the same, in order."""
    kind = pa.large_string() if large else pa.string()
    path = write(tmp_path / "requests.arrow", chunks, kind)
    texts = [text for chunk in chunks for text in chunk]
    with Requests(path) as requests:
        assert requests.count() == len(texts)
        start = 0
        for step in steps:
            stop = min(start + step, len(texts))
            assert requests.texts(start, stop) == texts[start:stop]
            start = stop
        assert requests.texts(0, len(texts)) == texts


def test_null_reads_as_the_empty_text(tmp_path: Path) -> None:
    """A row without a text is a row."""
    with Requests(write(tmp_path / "r.arrow", [["a", None, "c"]], pa.string())) as requests:
        assert requests.texts(0, 3) == ["a", "", "c"]


def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    """A file with fewer rows than asked for never gives a shorter list."""
    with (
        Requests(write(tmp_path / "r.arrow", [["a", "b"]], pa.string())) as requests,
        pytest.raises(InputError, match="ends before its last row"),
    ):
        requests.texts(1, 3)


def test_a_column_of_other_things_is_refused(tmp_path: Path) -> None:
    """The message names the columns, or the type that is no text."""
    table = pa.table({"body": ["a"]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="columns body, none is called 'text'"):
        Requests(tmp_path / "a.arrow")
    table = pa.table({"text": [1]})
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="holds int64, not texts"):
        Requests(tmp_path / "b.arrow")


def test_slices_written_in_any_order_read_back_bit_equal(tmp_path: Path) -> None:
    """A slice lands in its own place, may be written again, and disturbs no other."""
    (tmp_path / "results.bin").touch()
    file = ResultFile(tmp_path / "results.bin", items=10, dims=3, writable=True)
    truth = np.arange(30, dtype=np.float32).reshape(10, 3)
    for start, stop in ((4, 10), (0, 4), (4, 10)):
        file.write(
            start,
            SliceResult(
                vectors=truth[start:stop],
                tokens=np.arange(start, stop, dtype=np.int32),
                truncated=np.arange(start, stop) % 2 == 0,
                errors={1: RowError(code="internal", message="no")} if start == 4 else {},
            ),
        )
    vectors, rows = file.read(2, 9)
    file.close()
    file.close()
    assert vectors.tobytes() == truth[2:9].tobytes()
    assert rows["tokens"].tolist() == [2, 3, 4, 0, 6, 7, 8]
    assert rows["truncated"].tolist() == [True, False, True, False, True, False, True]
    assert rows["state"].tolist() == [EMBEDDED] * 3 + [FAILED] + [EMBEDDED] * 3


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """The second to lock a batch gets nothing, until the first lets go."""
    (tmp_path / "lock").touch()
    first = lock_batch(tmp_path)
    assert first is not None
    assert lock_batch(tmp_path) is None
    os.close(first)
    again = lock_batch(tmp_path)
    assert again is not None
    os.close(again)
