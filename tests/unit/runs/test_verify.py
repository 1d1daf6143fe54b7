"""Results are joined by key alone; whatever is wrong gets a name in its place."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import AlignmentError
from embatch.providers.base import wire_key
from embatch.runs.verify import Join
from embatch.types.embedding import RowError, Space
from embatch.types.results import ResultBlock

LABEL = "embatch:j:r:0:1"
DIMS = 4
SPACE = Space(provider="local", model="m", dims=DIMS)
ERROR = RowError(code="internal", message="no")


def truth(items: int) -> np.ndarray:
    matrix = np.random.default_rng(items).normal(size=(items, DIMS)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def join(items: int) -> Join:
    into = np.zeros((items, DIMS), dtype=np.float32)
    return Join(label=LABEL, items=items, space=SPACE, into=into)


def block(indices: list[int], vectors: np.ndarray, label: str = LABEL) -> ResultBlock:
    return ResultBlock(keys=[wire_key(label, index) for index in indices], vectors=vectors)


@given(items=st.integers(1, 40), seed=st.integers(0, 10**6), size=st.integers(1, 9), data=st.data())
def test_any_order_and_any_gaps_join_to_the_same(
    items: int, seed: int, size: int, data: st.DataObject
) -> None:
    """Shuffled, cut anyhow, with rows failed or left out: each vector stands at its item."""
    vectors = truth(items)
    order = list(range(items))
    random.Random(seed).shuffle(order)
    left_out = data.draw(st.sets(st.sampled_from(order)))
    failed = data.draw(st.sets(st.sampled_from(order))) - left_out
    good = [index for index in order if index not in left_out | failed]
    joining = join(items)
    for start in range(0, len(good), size):
        part = good[start : start + size]
        joining.add(block(part, vectors[part]))
    for index in failed:
        joining.add(
            ResultBlock(
                keys=[],
                vectors=np.empty((0, DIMS), np.float32),
                errors=[(wire_key(LABEL, index), ERROR)],
            )
        )
    joined = joining.finish()
    assert np.allclose(joined.vectors[good], vectors[good], atol=1e-6)
    codes = {index: error.code for index, error in joined.errors.items()}
    assert codes == dict.fromkeys(left_out, "missing") | dict.fromkeys(failed, "internal")


def test_the_same_line_twice_is_counted_and_passes() -> None:
    """A service that repeats itself exactly does no harm, within a block or across blocks."""
    vectors = truth(3)
    joining = join(3)
    joining.add(block([0, 1, 0], vectors[[0, 1, 0]]))
    joining.add(block([2, 1], vectors[[2, 1]]))
    joined = joining.finish()
    assert joined.repeated == 2
    assert not joined.errors
    assert np.allclose(joined.vectors, vectors, atol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_a_line_of_nan_that_comes_twice_fails_its_row_alone(split: bool) -> None:
    """It is the same line: the other rows of the batch keep their vectors."""
    vectors = truth(3)
    vectors[1] = np.nan
    joining = join(3)
    if split:
        joining.add(block([0, 1], vectors[[0, 1]]))
        joining.add(block([1, 2], vectors[[1, 2]]))
    else:
        joining.add(block([0, 1, 1, 2], vectors[[0, 1, 1, 2]]))
    joined = joining.finish()
    assert joined.repeated == 1
    assert {index: error.code for index, error in joined.errors.items()} == {1: "not_finite"}
    assert np.allclose(joined.vectors[[0, 2]], vectors[[0, 2]], atol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_one_key_with_two_vectors_is_refused(split: bool) -> None:
    """Which of the two is right cannot be known."""
    vectors = truth(2)
    joining = join(2)
    last = block([0, 0], vectors)
    if split:
        joining.add(block([0], vectors[[0]]))
        last = block([0], vectors[[1]])
    with pytest.raises(AlignmentError, match="item 0 came twice with different vectors"):
        joining.add(last)


def test_a_key_of_another_batch_is_refused() -> None:
    """Another batch's file cannot pass for this one's."""
    with pytest.raises(AlignmentError, match="key of another batch"):
        join(2).add(block([0], truth(1), "embatch:j:r:0:2"))


@pytest.mark.parametrize(
    "key",
    [
        *("0", "", "unknown-1", "no:thing"),
        wire_key(LABEL, 2),
        wire_key(LABEL, 0).replace(":0", ":-1"),
        wire_key(LABEL, 0).replace(":0", ":²"),
        wire_key(LABEL, 0).replace(":0", ":"),
        wire_key(LABEL, 0) + "0" * 13,
    ],
)
def test_a_key_that_nobody_sent_is_counted_and_its_line_dropped(key: str) -> None:
    """Among good lines, alone in its block, and as an error; the others find their places."""
    vectors = truth(3)
    joining = join(2)
    keys = [wire_key(LABEL, 1), key, wire_key(LABEL, 0)]
    joining.add(
        ResultBlock(
            keys=keys,
            vectors=vectors,
            tokens=np.array([5, 6, 7], np.int32),
            truncated=np.array([True, False, False]),
        )
    )
    joining.add(ResultBlock(keys=[key], vectors=vectors[:1], errors=[(key, ERROR)]))
    joined = joining.finish()
    assert (joined.unknown, joined.tokens, joined.errors) == (3, 12, {})
    assert joined.truncated.tolist() == [False, True]
    assert np.allclose(joined.vectors, vectors[[2, 0]], atol=1e-6)


def test_a_row_that_is_both_vector_and_error_is_refused() -> None:
    """A row cannot have come and failed."""
    joining = join(1)
    joining.add(block([0], truth(1)))
    with pytest.raises(AlignmentError, match="both"):
        joining.add(
            ResultBlock(
                keys=[],
                vectors=np.empty((0, DIMS), np.float32),
                errors=[(wire_key(LABEL, 0), ERROR)],
            )
        )


def test_broken_vectors_are_errors_in_their_place() -> None:
    """NaN, infinity and zeros never reach a part; their neighbours do."""
    vectors = truth(4)
    broken = vectors.copy()
    broken[1, 2], broken[2, 0], broken[3] = np.nan, np.inf, 0.0
    joining = join(4)
    joining.add(block([0, 1, 2, 3], broken))
    joined = joining.finish()
    codes = {index: error.code for index, error in joined.errors.items()}
    assert codes == {1: "not_finite", 2: "not_finite", 3: "zero_vector"}
    assert all(error.transient for error in joined.errors.values())
    assert np.allclose(joined.vectors[0], vectors[0], atol=1e-6)


HOSTILE = [0.0, -0.0, 1.0, 1e-30, -1e-30, 1e-45, 1e38, -1e38, np.inf, -np.inf, np.nan]


@given(rows=st.lists(st.lists(st.sampled_from(HOSTILE), min_size=DIMS, max_size=DIMS), min_size=1))
def test_vectors_too_large_or_too_small_to_square_are_told_from_broken_ones(
    rows: list[list[float]],
) -> None:
    """Whatever their squares come to in float32, each row is named for what it holds."""
    joining = join(len(rows))
    joining.add(block(list(range(len(rows))), np.array(rows, dtype=np.float32)))
    codes = {index: error.code for index, error in joining.finish().errors.items()}
    assert codes == {
        index: "zero_vector" if np.isfinite(row).all() else "not_finite"
        for index, row in enumerate(rows)
        if not np.isfinite(row).all() or not np.any(row)
    }


def test_wrong_dims_are_refused() -> None:
    """Vectors of another length belong to another space."""
    with pytest.raises(AlignmentError, match="vectors of 3 values"):
        join(1).add(block([0], np.ones((1, 3), np.float32)))


def test_vectors_are_brought_to_length_one() -> None:
    """A service that answers with other lengths is normalised, as the space says."""
    joining = join(2)
    joining.add(block([0, 1], truth(2) * 0.59))
    assert np.allclose(np.linalg.norm(joining.finish().vectors, axis=1), 1.0, atol=1e-6)


def test_tokens_and_truncations_are_counted_once_a_row() -> None:
    """A repeated line is not billed twice in the figures."""
    vectors = truth(2)
    joining = join(2)
    joining.add(
        ResultBlock(
            keys=[wire_key(LABEL, index) for index in (0, 1, 1)],
            vectors=vectors[[0, 1, 1]],
            tokens=np.array([5, 7, 7], np.int32),
            truncated=np.array([False, True, True]),
        )
    )
    joined = joining.finish()
    assert joined.tokens == 12
    assert joined.truncated.tolist() == [False, True]
