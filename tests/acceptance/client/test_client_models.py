"""Models that embatch's table does not know, and tokens counted on both clouds."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embatch.errors import NotFoundError
from embatch.testing.cloud import UNLISTED_MODEL, Fault, count_tokens, expected_vectors
from embatch.types import models

TEXTS = ["alpha", "beta", "gamma ü"]


@pytest.fixture(autouse=True)
def unwarned() -> Iterator[None]:
    """Nothing was warned of in this process yet."""
    models._unlisted.cache_clear()
    yield
    models._unlisted.cache_clear()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [one for one in caplog.records if one.levelno >= logging.WARNING]
    return [one.getMessage() for one in found]


@pytest.mark.parametrize("dims", [None, 200])
def test_unlisted_models_work(
    case: Any, caplog: pytest.LogCaptureFixture, dims: int | None
) -> None:
    """A model newer than the table: batch, interactive call and count work, with one warning."""
    assert UNLISTED_MODEL not in models.MODELS
    asked = {"model": UNLISTED_MODEL, "output_dimensionality": dims}
    expected = expected_vectors(TEXTS, model=UNLISTED_MODEL, dims=dims)
    case.fault("shuffle")
    found = case.results(TEXTS, **asked)
    assert found.aligned
    np.testing.assert_array_equal(found.to_numpy(), expected)
    now = case.client.embed_contents(TEXTS, **asked)
    np.testing.assert_array_equal(np.stack([one.values for one in now]), expected)
    one = case.client.embed_content(TEXTS[0], **asked)
    np.testing.assert_array_equal(one.values, expected[0])
    assert case.client.count_tokens("hello world", model=UNLISTED_MODEL) == 3
    assert UNLISTED_MODEL in [model.name for model in case.client.list_models()]
    (warning,) = _warnings(caplog)
    assert warning.startswith(f"model {UNLISTED_MODEL} is not in embatch's table")


def test_models_that_nobody_knows(case: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What the service says of a model counts: the warning comes first, then its error."""
    with pytest.raises(NotFoundError):
        case.client.async_batch_embed_contents(["a"], display_name="x", model="embedding-9")
    (warning,) = _warnings(caplog)
    assert "embedding-9 is not in embatch's table" in warning


def test_unlisted_models_in_files(case: Any) -> None:
    """Large batches of such a model go through a file like any other."""
    texts = [f"text {i}" for i in range(1_100)]
    found = case.results(texts, model=UNLISTED_MODEL, output_dimensionality=8)
    expected = expected_vectors(texts, model=UNLISTED_MODEL, dims=8)
    np.testing.assert_array_equal(found.to_numpy(), expected)


def test_batches_are_found_whatever_their_model(case: Any) -> None:
    """The label tells a batch of ours, not its model's name: found, listed, and made once."""
    lost = Fault("reset_after", {"route": case.route("create")}, times=1)
    case.cloud.add_fault(lost)
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x", model=UNLISTED_MODEL)
    assert made.model == UNLISTED_MODEL
    assert len(case.cloud.jobs()) == 1
    assert case.client.find_batch(made.label).name == made.name
    assert [one.name for one in case.client.list_batches()] == [made.name]


def test_unique_names_are_found_whatever_their_model(vertex: Any, jsonl: Any) -> None:
    """A label that the caller made unique bears no tag: it is found all the same."""
    path = jsonl(['{"key":"a","request":{"content":{"parts":[{"text":"a"}]}}}'])
    made = vertex.client.create_batch_from_file(
        path, display_name="run-7/batch-3", model=UNLISTED_MODEL, unique_name=True
    )
    assert vertex.client.find_batch("run-7/batch-3").name == made.name


@pytest.mark.parametrize(
    "model", ["gemini-embedding-001", "models/gemini-embedding-001", "text-embedding-005"]
)
def test_tokens_are_counted(case: Any, model: str) -> None:
    """One text or several, together, as each model wants to be asked."""
    if case.on == "gemini" and model == "text-embedding-005":
        with pytest.raises(NotFoundError, match="Check the name"):
            case.client.count_tokens("a", model=model)
        return
    one = case.client.count_tokens("hello world", model=model)
    assert one == count_tokens("hello world")
    assert case.client.count_tokens(["hello world", "ü"], model=model) == one + 1


def test_express_keys_count_tokens(vertex: Any) -> None:
    """Without a project too."""
    client = vertex.open(
        credentials=None, project=None, location=None, api_key=vertex.cloud.api_key
    )
    assert client.count_tokens("hello world") == 3


def test_models_that_count_nothing(case: Any) -> None:
    """A model that a service does not know: a NotFoundError that says what to check."""
    with pytest.raises(NotFoundError, match="that the model offers this call"):
        case.client.count_tokens("a", model="gemini-embedding-9")
