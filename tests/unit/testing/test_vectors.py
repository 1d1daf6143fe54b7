"""The truth of the fake cloud."""

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.testing.cloud import count_tokens, expected_vector, expected_vectors
from embatch.testing.cloud.vectors import make_vectors, write_vectors

NO_DEADLINE = settings(deadline=None)  # a table of points is made at its first use
MODEL_1, MODEL_2 = "gemini-embedding-001", "gemini-embedding-2"


@NO_DEADLINE
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    dims=st.integers(1, 400),
    model=st.sampled_from([MODEL_1, MODEL_2]),
)
def test_written_vectors_parse_to_the_made_ones(seeds, dims, model):
    """JSON text and float32 array of a vector are the same numbers, bit by bit."""
    words = np.array(seeds, dtype=np.uint64)
    made = make_vectors(words, model, dims)
    parsed = [orjson.loads(text) for text in write_vectors(words, model, dims)]
    np.testing.assert_array_equal(np.array(parsed, dtype=np.float64).astype(np.float32), made)


@NO_DEADLINE
@given(st.text(min_size=1), st.sampled_from([128, 256, 768, 1536, 3071]))
def test_001_below_full_dims_is_the_bare_prefix(text, dims):
    """gemini-embedding-001 cuts its full vector and does not normalise."""
    full = expected_vector(text, model=MODEL_1)
    np.testing.assert_array_equal(expected_vector(text, model=MODEL_1, dims=dims), full[:dims])
    assert np.linalg.norm(full) == pytest.approx(1.0, abs=1e-6)
    assert np.linalg.norm(full[:768]) == pytest.approx(0.5, abs=1e-6)


@NO_DEADLINE
@given(st.text(min_size=1), st.sampled_from([128, 255, 768, 3072]))
def test_2_is_unit_length_at_every_dims(text, dims):
    """gemini-embedding-2 normalises what it cuts."""
    vector = expected_vector(text, model=MODEL_2, dims=dims)
    assert vector.shape == (dims,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


def test_task_and_title_change_the_vector_of_001_only():
    """001 reads task type and title; 2 ignores them in silence."""
    asked = [{}, {"task_type": "RETRIEVAL_DOCUMENT"}]
    asked.append({"task_type": "retrieval_document", "title": "t"})
    ones = [expected_vector("x", model=MODEL_1, dims=128, **more).tobytes() for more in asked]
    twos = [expected_vector("x", model=MODEL_2, dims=128, **more).tobytes() for more in asked]
    assert len(set(ones)) == 3
    assert len(set(twos)) == 1


@NO_DEADLINE
@given(st.lists(st.text(max_size=30), min_size=2, max_size=6, unique=True))
def test_different_texts_are_far_apart(texts):
    """No two texts share a vector, or come near one another."""
    vectors = expected_vectors(texts, model=MODEL_2)
    cosines = vectors @ vectors.T - np.eye(len(texts))
    assert cosines.max() < 0.2


def test_texts_are_cut_at_the_models_limit():
    """What lies beyond the limit does not change the vector."""
    read = "x" * 2048 * 4
    np.testing.assert_array_equal(
        expected_vector(read, dims=128), expected_vector(read + "more", dims=128)
    )
    assert not np.array_equal(
        expected_vector(read, model=MODEL_2, dims=128),
        expected_vector(read + "more", model=MODEL_2, dims=128),
    )


@NO_DEADLINE
@given(st.text())
def test_tokens_never_exceed_the_utf8_bytes(text):
    """A token is up to four bytes; an empty text counts one."""
    size = len(text.encode("utf-8", "surrogatepass"))
    assert 1 <= count_tokens(text) <= max(1, size)
