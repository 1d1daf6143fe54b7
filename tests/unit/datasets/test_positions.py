"""Reading goes on exactly from any place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.datasets.source import Position, open_source

KINDS = ("parquet", "jsonl", "csv.gz", "txt", "arrow", "tsv", "feather")
SIZES = (7, 1, 12)


def read_all(source, start=None, block_rows=8192):
    return [
        row
        for block in source.read(start, block_rows=block_rows)
        for row in block.batch.to_pylist()
    ]


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory, write_rows):
    """Three files of one format, 20 rows together."""
    folder = tmp_path_factory.mktemp("inputs")
    row = 0
    for number, size in enumerate(SIZES):
        texts = [{"text": f"row {row + i}\r" if i % 3 else ""} for i in range(size)]
        write_rows(folder / f"{number}.{request.param}", texts)
        row += size
    return open_source([str(folder / "*")])


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0, sum(SIZES)), block_rows=st.integers(1, 9))
def test_the_rest_is_the_same_from_any_position(source, place, block_rows):
    """A position within or at the end of any block gives all later rows and no other."""
    whole = read_all(source)
    position = Position()
    for block in source.read(block_rows=3):
        if block.first_row <= place <= block.end.row:
            position = block.position_at(place - block.first_row)
    assert position.row == place
    assert read_all(source, position, block_rows) == whole[place:]


@settings(deadline=None, max_examples=40)
@given(block_rows=st.integers(1, 30))
def test_blocks_follow_each_other(source, block_rows):
    """Blocks are within their size, in order, without gaps, and never span two inputs."""
    end = Position()
    for block in source.read(block_rows=block_rows):
        assert 1 <= block.batch.num_rows <= block_rows
        assert block.first.row == end.row
        if block.first.input == end.input:
            assert block.first == end
        else:
            assert block.first.input_row == 0
        end = block.end
    assert end == Position(input=len(SIZES) - 1, input_row=SIZES[-1], row=sum(SIZES))


def test_a_position_comes_back_from_json():
    """The journal keeps positions as plain values."""
    position = Position(input=1, input_row=2, row=3)
    assert Position.from_json(position.to_json()) == position
