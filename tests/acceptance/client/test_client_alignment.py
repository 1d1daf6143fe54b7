"""Spoiled results: named errors in place, or AlignmentError; never a shifted list."""

from typing import Any

import numpy as np
import pytest

from embatch.errors import AlignmentError
from embatch.testing.cloud import expected_vectors
from embatch.types.embedding import BatchEmbeddings, RowError

TEXTS = [f"text {i}" for i in range(20)]
EXPECTED = expected_vectors(TEXTS, dims=128)


@pytest.fixture(params=[20, 1_100], ids=["small", "large"])
def texts(request: pytest.FixtureRequest) -> list[str]:
    """Inline and file batches on the Gemini API."""
    return [f"text {i}" for i in range(request.param)]


def _check(found: BatchEmbeddings, texts: list[str], bad: dict[int, str]) -> None:
    assert found.aligned
    assert len(found) == len(texts)
    assert {index: error.code for index, error in found.failed_responses} == bad
    good = [index for index in range(len(texts)) if index not in bad]
    expected = expected_vectors([texts[index] for index in good], dims=128)
    np.testing.assert_array_equal(found.to_numpy()[good], expected)
    assert np.isnan(found.to_numpy()[list(bad)]).all()
    for index in bad:
        assert isinstance(found[index], RowError)


@pytest.mark.parametrize(
    ("fault", "args", "code"),
    [
        ("missing_rows", {}, "missing"),
        ("row_error", {"code": 3, "message": "content is empty"}, "invalid_argument"),
        ("row_error", {"code": 1, "message": None}, "cancelled"),
        ("row_error", {"code": 13, "details": True}, "internal"),
        ("null_vector", {"shape": "null"}, "no_vector"),
        ("null_vector", {"shape": "empty"}, "no_vector"),
        ("null_vector", {"shape": "absent"}, "no_vector"),
        ("null_vector", {"shape": "no_response"}, "no_vector"),
        ("null_value", {}, "not_finite"),
        ("nan", {}, "not_finite"),
        ("overflow", {}, "not_finite"),
        ("wrong_dims", {}, "wrong_dims"),
    ],
)
def test_bad_rows_are_named_in_their_place(
    case: Any, texts: list[str], fault: str, args: dict[str, Any], code: str
) -> None:
    """A bad row is a RowError where its text stands, in a shuffled answer too."""
    case.fault("shuffle")
    case.fault(fault, **args, indices=[0, 3, 17])
    found = case.results(texts, output_dimensionality=128)
    _check(found, texts, dict.fromkeys([0, 3, 17], code))


@pytest.mark.parametrize("fault", ["nan", "broken_line"])
def test_lines_that_are_no_json_spoil_no_others(case: Any, fault: str) -> None:
    """A line that JSON does not allow costs its own row at most."""
    texts = [f"text {i}" for i in range(1_100)]
    case.fault(fault, indices=[5], **({"bare": True} if fault == "nan" else {}))
    found = case.results(texts, output_dimensionality=128)
    _check(found, texts, {5: "not_finite" if fault == "nan" else "missing"})


def test_all_rows_failed(case: Any, texts: list[str]) -> None:
    """A batch without one vector still has a result for every text."""
    case.fault("row_error", code=8)
    found = case.results(texts, output_dimensionality=128)
    _check(found, texts, dict.fromkeys(range(len(texts)), "resource_exhausted"))
    assert all(error.transient for _, error in found.failed_responses)


@pytest.mark.parametrize(
    ("fault", "args"),
    [
        ("doubled_rows", {"identical": True}),
        ("doubled_rows", {"identical": False}),
        ("unknown_rows", {}),
        ("foreign_rows", {}),
        ("metadata_missing", {}),
    ],
)
def test_keys_that_do_not_fit_are_an_alignment_error(
    case: Any, texts: list[str], fault: str, args: dict[str, Any]
) -> None:
    """An unknown, foreign, doubled or absent key means that nothing can be trusted."""
    case.client.async_batch_embed_contents(["other"], display_name="other")
    case.fault(fault, **args)
    batch = case.finished(texts, output_dimensionality=128)
    with pytest.raises(AlignmentError, match="Do not use them"):
        case.client.get_batch_embeddings(batch)


def test_dimensions_that_the_service_ignores_are_cut_here(vertex: Any, texts: list[str]) -> None:
    """Vertex AI that answers with full vectors: the first values are what was asked for."""
    vertex.fault("dims_ignored")
    found = vertex.results(texts, output_dimensionality=128)
    _check(found, texts, {})


def test_output_in_several_files(vertex: Any, texts: list[str]) -> None:
    """All files under the output directory are read."""
    vertex.fault("output_shards", count=4)
    vertex.fault("shuffle")
    _check(vertex.results(texts, output_dimensionality=128), texts, {})


def test_older_models_are_matched_too(vertex: Any) -> None:
    """Rows of text-embedding-* bear no key of their own: the instance that comes back does."""
    vertex.fault("shuffle")
    vertex.fault("row_error", code=3, indices=[2])
    found = vertex.results(["a", "b", "a", "c"], model="text-embedding-005")
    assert found.aligned
    (failed,) = [index for index, _ in found.failed_responses]
    assert failed in (0, 2)  # equal texts cannot be told apart, and need not be
    expected = expected_vectors(["a", "b", "a", "c"], model="text-embedding-005")
    good = [index for index in range(4) if index != failed]
    np.testing.assert_array_equal(found.to_numpy()[good], expected[good])


def test_tokens_may_be_missing(case: Any, texts: list[str]) -> None:
    """A service that does not say what it billed leaves tokens unknown."""
    case.fault("usage_missing")
    found = case.results(texts, output_dimensionality=128)
    assert found.total_tokens is None


@pytest.mark.parametrize("place", ["metadata", "response"])
def test_results_in_one_place_only(gemini: Any, texts: list[str], place: str) -> None:
    """Inline results are read from wherever the service puts them."""
    gemini.fault("output_in", place=place)
    _check(gemini.results(texts, output_dimensionality=128), texts, {})
