"""What a run asks of the clouds, before anything is sent: spaces, limits, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.config import CloudSettings, Secret
from embatch.errors import ConfigError, InvalidRequestError
from embatch.providers.clouds import Asked, at_unit_length
from embatch.providers.gemini import GeminiProvider, file_name_of, open_gemini
from embatch.providers.limits import GEMINI, SETTLE_S, batch_limits, service_limits
from embatch.providers.opening import open_provider
from embatch.providers.vertex import open_vertex
from embatch.types.models import find_model
from embatch.vectors import normalize

SETTINGS = CloudSettings(api_key=Secret("a key"))


def opened(**asked: Any) -> GeminiProvider:
    provider = open_gemini(model=asked.pop("model", None), settings=SETTINGS, **asked)
    provider.close()
    return provider


def test_the_space_of_the_default_model() -> None:
    """Full vectors without a task; the model's name is bare."""
    space = opened().space
    assert (space.provider, space.model, space.dims) == ("gemini", "gemini-embedding-001", 3072)
    assert (space.task_type, space.prompt_template, space.normalized) == (None, None, True)
    assert opened(model="models/gemini-embedding-001", dims=3072).space == space


def test_short_vectors_of_the_first_model_are_brought_to_length_1() -> None:
    """The service does not do it, the space says that it is done."""
    space = opened(dims=768, task_type="CLUSTERING").space
    assert (space.dims, space.task_type, space.normalized) == (768, "clustering", True)


def test_the_second_models_task_is_in_the_space_as_text() -> None:
    """The documented prefix, with no title."""
    space = opened(model="gemini-embedding-2", task_type="retrieval_document").space
    assert space.prompt_template == "title: none | text: {text}"
    assert opened(model="gemini-embedding-2").space.prompt_template is None


@pytest.mark.parametrize("dims", [0, 64, 4000])
def test_dims_that_the_model_lacks_are_refused(dims: int) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequestError):
        opened(dims=dims)


def test_a_model_of_unknown_length_needs_its_dims() -> None:
    """No length is guessed."""
    with pytest.raises(InvalidRequestError, match="--dims"):
        opened(model="sentence-vectors-9")
    assert opened(model="sentence-vectors-9", dims=1024).space.dims == 1024


def test_without_a_key_nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variables."""
    with pytest.raises(ConfigError, match="GOOGLE_API_KEY"):
        open_gemini(model=None, settings=CloudSettings())


def test_vertex_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials that are no file."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="Google credentials"):
        open_vertex(model=None, settings=CloudSettings(project="p", location="us-central1"))


def test_an_unknown_provider_names_the_known_ones(tmp_path: Path) -> None:
    """All three."""
    with pytest.raises(InvalidRequestError, match="local, gemini, vertex"):
        open_provider(
            "openai",
            model=None,
            precision="auto",
            dims=None,
            task_type=None,
            folder=tmp_path,
            checkpoint=lambda _: None,
        )


def test_batches_are_cut_by_tokens_first() -> None:
    """Several fit under the lowest ceiling; all that may be under way reach the highest."""
    limits = opened().limits
    assert limits.max_batch_tokens * 5 == GEMINI.enqueued_tokens
    assert limits.max_in_flight_batches * limits.max_batch_tokens == 10_000_000
    assert (limits.settle_s, limits.billed) == (SETTLE_S, True)
    assert opened(settle_s=5.0).limits.settle_s == 5.0
    assert opened(settle_s=0.0).limits.settle_s == 0.0


@pytest.mark.parametrize(
    ("model", "rows"),
    [("gemini-embedding-001", 1_000_000), ("gemini-embedding-2", 1_000_000),
     ("text-embedding-005", 30_000)],
)  # fmt: skip
def test_vertex_takes_more_rows_of_newer_models(model: str, rows: int) -> None:
    """As its documentation says; ours are never larger."""
    known = find_model(model)
    service = service_limits("vertex", known)
    limits = batch_limits(service, known, settle_s=None)
    assert service.rows == rows
    assert limits.max_batch_items <= rows
    assert limits.max_batch_bytes < service.file_bytes <= 1_000_000_000
    assert limits.max_item_tokens == known.max_tokens


def test_a_label_has_one_file_name() -> None:
    """Of a length and of characters that the Files API takes."""
    name = file_name_of("embatch:j:r:1:1:n")
    assert name == file_name_of("embatch:j:r:1:1:n") != file_name_of("embatch:j:r:1:2:n")
    assert len(name.removeprefix("files/")) <= 40


def test_unit_vectors_stay_to_the_bit() -> None:
    """Others come to length 1; what has no direction stays."""
    rows = np.array([[0.6, 0.8], [3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]], dtype=np.float32)
    made = at_unit_length(rows.copy())
    assert made[0].tobytes() == rows[0].tobytes()
    assert made[1] == pytest.approx([0.6, 0.8])
    assert made[2].tolist() == [0.0, 0.0]
    assert np.isnan(made[3][0])
    assert at_unit_length(np.empty((0, 3), dtype=np.float32)).shape == (0, 3)


@given(rows=st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), max_size=9))
def test_length_one_is_the_same_in_place_and_row_by_row(rows: list[list[float]]) -> None:
    """To the bit what `normalize` gives, for rows that are not of length 1 and have a direction."""
    matrix = np.array(rows, dtype=np.float32).reshape(-1, 3)
    made = at_unit_length(matrix.copy())
    for before, after in zip(matrix, made, strict=True):
        length = np.linalg.norm(before.astype(np.float64))
        stays = length == 0 or abs(length - 1.0) <= 1e-5
        assert after.tobytes() == (before if stays else normalize(before)[0]).tobytes()


def test_asked_is_checked_before_a_cloud_is_opened() -> None:
    """A task that nobody knows."""
    with pytest.raises(InvalidRequestError, match="task_type"):
        Asked.of("gemini-embedding-001", dims=None, task_type="poetry", settle_s=None)
