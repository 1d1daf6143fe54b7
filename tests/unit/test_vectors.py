"""Maths on matrices: against the plain formulas, at the edges, and refusing what does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from embatch import vectors
from embatch.errors import InvalidRequestError

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1000, 1000, width=32).map(
        lambda value: 0.0 if abs(value) < 1e-3 else value
    ),
)


@given(matrices)
def test_normalized_rows_have_length_one_or_are_zero(matrix: np.ndarray) -> None:
    """Directions stay, lengths become 1; a row of zeros has no direction and stays."""
    unit = vectors.normalize(matrix)
    assert unit.dtype == np.float32
    assert unit.flags.c_contiguous
    lengths = np.linalg.norm(unit, axis=1)
    zero = ~matrix.any(axis=1)
    assert np.allclose(lengths[~zero], 1.0, atol=1e-5)
    assert not unit[zero].any()


def test_cosine_similarity_is_the_textbook_formula() -> None:
    """Every row with every row, within -1..1 though float32 rounds."""
    chance = np.random.default_rng(1)
    a, b = chance.normal(size=(5, 7)), chance.normal(size=(3, 7))
    want = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    got = vectors.cosine_similarity(a, b)
    assert got.shape == (5, 3)
    assert np.allclose(got, want, atol=1e-6)
    assert np.abs(vectors.cosine_similarity(a, a)).max() <= 1.0


def test_one_vector_is_a_matrix_of_one_row() -> None:
    """A query needs no wrapping."""
    assert vectors.cosine_similarity([3.0, 4.0], [[3.0, 4.0], [4.0, -3.0]]).tolist() == [[1.0, 0.0]]


def test_top_k_gives_the_best_first_and_ties_in_row_order() -> None:
    """Equal scores keep the order of the rows, so that answers do not flicker."""
    matrix = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    rows, scores = vectors.top_k(matrix, [1.0, 0.0], k=3)
    assert rows.tolist() == [[0, 2, 3]]
    assert np.allclose(scores, [[1.0, 1.0, np.sqrt(0.5)]])
    assert vectors.top_k(matrix, [1.0, 0.0], k=99)[0].shape == (1, 4)


def test_truncation_keeps_the_first_values_at_length_one() -> None:
    """As Matryoshka models are meant to be cut."""
    assert np.allclose(vectors.truncate([[3.0, 4.0, 12.0]], 2), [[0.6, 0.8]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vectors.cosine_similarity([[1.0, 2.0]], [[1.0]]), "2 and 1 values"),
        (lambda: vectors.top_k([[1.0]], [1.0], k=0), "k must be at least 1"),
        (lambda: vectors.truncate([[1.0]], 2), "1..1, not 2"),
        (lambda: vectors.normalize(np.zeros((2, 2, 2))), "3 dimensions"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    """The message says what does not fit."""
    assert callable(call)
    with pytest.raises(InvalidRequestError, match=words):
        call()
