"""Alignment by key: in place, or an error; never shifted. And the label that makes it possible."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.client.alignment import (
    MOST_ROWS,
    Aligner,
    checked_keys,
    in_file_order,
    last_own_index,
    tagged_rows,
)
from embatch.client.results import BlockBuilder, RowBlock, open_reader
from embatch.errors import AlignmentError, InvalidRequestError
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings, RowError
from embatch.types.label import Label, label_hash, wire_key
from embatch.types.state import JobState

DIMS = 3


def _batch(rows: int, keys: list[str] | None = None) -> EmbedContentBatch:
    label = Label.new("x", rows=rows, dims=DIMS, keys=keys)
    return EmbedContentBatch(
        name="batches/x",
        display_name="x",
        label=label.text,
        model="gemini-embedding-001",
        state=JobState.COMPLETED,
    )


def _blocks(lines: list[bytes], block_rows: int = 2) -> list[RowBlock]:
    builder = BlockBuilder(dims=DIMS, block_rows=block_rows)
    return [*builder.add(lines), *builder.finish()]


def _aligned(batch: EmbedContentBatch, lines: list[bytes], rows: int) -> BatchEmbeddings:
    aligner, read = Aligner(batch, rows, by_text={}), open_reader()
    aligner.add(read(line) for line in lines)
    return aligner.finish(keys=None)


def _good(key: str, value: int) -> bytes:
    return b'{"key":"%b","response":{"embedding":{"values":[%d,%d,1]}}}' % (
        key.encode(),
        value,
        -value,
    )


KINDS = {
    "good": lambda key, i: [_good(key, i)],
    "missing": lambda key, i: [],
    "invalid_argument": lambda key, i: [b'{"key":"%b","error":{"code":3}}' % key.encode()],
    "no_vector": lambda key, i: [b'{"key":"%b","response":{}}' % key.encode()],
    "wrong_dims": lambda key, i: [
        b'{"key":"%b","response":{"embedding":{"values":[1]}}}' % key.encode()
    ],
    "not_finite": lambda key, i: [
        b'{"key":"%b","response":{"embedding":{"values":[1,2,NaN]}}}' % key.encode()
    ],
}


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=25), st.randoms())
def test_every_input_has_its_own_result(kinds: list[str], random: Any) -> None:
    """Shuffled, with rows missing or bad in every way: each result stands where its text stood."""
    batch = _batch(len(kinds))
    lines = [
        line for i, kind in enumerate(kinds) for line in KINDS[kind](wire_key(batch.label, i), i)
    ]
    random.shuffle(lines)
    found = _aligned(batch, lines, len(kinds))
    assert len(found) == len(kinds)
    for i, kind in enumerate(kinds):
        one = found[i]
        if kind == "good":
            assert not isinstance(one, RowError)
            assert one.values.tolist() == [i, -i, 1]
        else:
            assert isinstance(one, RowError)
            assert one.code == kind
            assert np.isnan(found.to_numpy()[i]).all()


BAD_KEYS = [
    *("other:0", "", "5", "{own}:{n}", "{own}:-1", "{own}:", "{own}:1x", "{own}:²", "{own}:0"),
    *("{own}:00", "{own}:+0", "{own}: 0", f"{{own}}:{'9' * 5000}", f"{{own}}:{MOST_ROWS}"),
]


@given(
    st.integers(1, 10), st.sampled_from(BAD_KEYS), st.integers(0, 10), st.booleans(), st.booleans()
)
def test_keys_that_do_not_fit(n: int, bad: str, place: int, failed: bool, last: bool) -> None:
    """One unknown, foreign, malformed or doubled key anywhere is an AlignmentError."""
    batch = _batch(n)
    key = bad.replace("{own}", label_hash(batch.label)).replace("{n}", str(n))
    if failed and not key:
        return
    lines = [_good(wire_key(batch.label, i), i) for i in range(n)]
    row = b'{"key":"%b","error":{"code":3}}' % key.encode() if failed else _good(key, 0)
    lines.insert(len(lines) if last else place % (n + 1), row)
    with pytest.raises(AlignmentError) as caught:
        _aligned(batch, lines, n)
    assert "batches/x" in str(caught.value)


def test_others_batches_come_in_file_order() -> None:
    """Without our keys the order of the file is kept, failures in between."""
    lines = [_good("b", 1), b'{"key":"z","error":{"code":3}}', _good("a", 2)]
    found = in_file_order(_blocks(lines), dims=None)
    assert not found.aligned
    assert list(found.keys or ()) == ["b", "z", "a"]
    assert [index for index, _ in found.failed_responses] == [1]
    assert found.to_numpy()[[0, 2], 0].tolist() == [1, 2]


def test_whose_batch_it_is() -> None:
    """Our tag says how many rows were sent; without it the keys do, on whatever block they come."""
    assert tagged_rows(_batch(7)) == 7
    foreign = EmbedContentBatch(
        name="batches/y", display_name="y", label="y", model="m", state=JobState.COMPLETED
    )
    assert tagged_rows(foreign) is None
    assert last_own_index(foreign, _blocks([_good("mine-1", 1)])) is None
    lines = [b"{", b'{"key":"?","error":{"code":3}}', _good(wire_key("y", 4), 1)]
    assert last_own_index(foreign, _blocks([*lines, _good(wire_key("y", 0), 1)], 1)) == 4


def test_keys_must_be_the_ones_submitted() -> None:
    """Keys in another order or number are refused by their digest."""
    batch = _batch(2, ["a", "b"])
    assert list(checked_keys(batch, ["a", "b"], 2) or ()) == ["a", "b"]
    for wrong in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(InvalidRequestError):
            checked_keys(batch, wrong, 2)


@given(
    st.text(min_size=1),
    st.none() | st.integers(0, 10**9),
    st.none() | st.integers(1, 9999),
    st.none() | st.lists(st.text()),
)
def test_labels_round_trip(
    name: str, rows: int | None, dims: int | None, keys: list[str] | None
) -> None:
    """What a label says is read back from its text, whatever the display name."""
    label = Label.new(name, rows=rows, dims=dims, keys=keys)
    assert Label.parse(label.text) == label
    assert re.fullmatch(r"[0-9a-f]{12}:7", wire_key(label.text, 7))
    assert Label.new(name).text != Label.new(name).text


@pytest.mark.parametrize(
    "text", ["", "x", "x [embatch]", "x [embatch 12]", "x [embatch 5f0c9ab3d17e n=x]"]
)
def test_other_names_are_no_labels(text: str) -> None:
    """What embatch did not write is not taken for a label."""
    assert Label.parse(text) is None
