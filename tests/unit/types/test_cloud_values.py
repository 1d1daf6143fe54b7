"""Batches, their counts, embeddings and the model table, as values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embatch.errors import InvalidRequestError
from embatch.types.batch import EmbedContentBatchStats
from embatch.types.embedding import BatchEmbeddings, ContentEmbedding, RowError
from embatch.types.models import MODELS, READ, bare_model_name, find_model
from embatch.types.task import TaskType

COUNTS = st.integers(0, 10**6)
VECTORS = hnp.arrays(np.float32, 5, elements=st.floats(-1e3, 1e3, width=32))


@given(COUNTS, COUNTS, COUNTS)
def test_rates_are_percentages(good: int, failed: int, pending: int) -> None:
    """Always 0 to 100, and 0.0 where nothing counts."""
    stats = EmbedContentBatchStats(
        request_count=good + failed + pending,
        successful_request_count=good,
        failed_request_count=failed,
        pending_request_count=pending,
    )
    assert 0.0 <= stats.progress_percentage <= 100.0
    if good + failed:
        assert stats.success_rate + stats.failure_rate == pytest.approx(100.0)
    else:
        assert stats.success_rate == stats.failure_rate == 0.0
    assert stats.is_complete is (pending == 0 and good + failed > 0)


def test_empty_counts_raise_nothing() -> None:
    """Zero totals give 0.0."""
    stats = EmbedContentBatchStats()
    assert stats.progress_percentage == stats.success_rate == stats.failure_rate == 0.0
    assert not stats.is_complete


@given(VECTORS, VECTORS)
def test_vector_maths_agrees_with_numpy(a: np.ndarray, b: np.ndarray) -> None:
    """Norm, products and distances, in double precision."""
    left, right = ContentEmbedding(a), ContentEmbedding(b)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    assert left.norm == pytest.approx(np.linalg.norm(wide_a))
    assert left.dot_product(right) == pytest.approx(float(wide_a @ wide_b))
    assert left.euclidean_distance(right) == pytest.approx(float(np.linalg.norm(wide_a - wide_b)))
    assert -1.0 <= left.cosine_similarity(right) <= 1.0
    if left.norm > 1e-3:
        assert left.normalize().norm == pytest.approx(1.0, abs=1e-5)
        assert left.cosine_similarity(left) == pytest.approx(1.0, abs=1e-6)


def test_vectors_of_other_lengths_are_an_error() -> None:
    """Comparing them says so."""
    for method in ("cosine_similarity", "dot_product", "euclidean_distance"):
        with pytest.raises(InvalidRequestError, match="2 and 3 values"):
            getattr(ContentEmbedding(np.zeros(2)), method)(ContentEmbedding(np.zeros(3)))
    with pytest.raises(InvalidRequestError):
        ContentEmbedding(np.zeros((2, 2)))


def test_zeros_have_no_direction() -> None:
    """No division by zero."""
    zeros = ContentEmbedding(np.zeros(3, dtype=np.float32))
    assert zeros.normalize().norm == 0.0
    assert zeros.cosine_similarity(zeros) == 0.0


def test_results_are_a_sequence() -> None:
    """Embeddings and errors by index, negative and slices too."""
    error = RowError(code="missing", message="no row")
    vectors = np.array([[1, 0], [np.nan, np.nan], [0, 1]], dtype=np.float32)
    found = BatchEmbeddings(vectors=vectors, errors={1: error})
    assert len(found) == 3
    assert found[1] is error
    assert found[-1] == ContentEmbedding(np.array([0, 1]))
    assert found[1:] == [error, found[2]]
    assert found.failed_responses == [(1, error)]
    assert [index for index, _ in found.successful_responses] == [0, 2]
    assert next(iter(found)) == found[0]
    with pytest.raises(IndexError):
        found[3]


def test_model_table_is_whole() -> None:
    """Every model has bounds; those with prefixes have one for every task."""
    assert READ
    for name, model in MODELS.items():
        assert find_model(f"models/{name}") is model
        assert 1 <= model.min_dims <= model.dims
        if model.prefixes:
            assert set(model.prefixes) == set(TaskType)
            assert all(prefix.count("{text}") == 1 for prefix in model.prefixes.values())
        if model.usd_per_million is not None:
            assert model.batch_usd_per_million == model.usd_per_million / 2


def test_unknown_models_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """They work, with what is known of the default."""
    model = find_model("models/new-model")
    assert not model.known
    assert "new-model" in caplog.text
    assert bare_model_name("publishers/google/models/x") == "x"
    assert bare_model_name("tunedModels/x") == "tunedModels/x"
