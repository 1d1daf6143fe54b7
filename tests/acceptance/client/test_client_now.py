"""Interactive calls, models, and how a client finds its cloud."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.oauth2.credentials import Credentials

from embatch.client import AsyncClient, Client
from embatch.config import CloudSettings, Secret
from embatch.errors import AlignmentError, ConfigError, InvalidRequestError, RateLimitError
from embatch.testing.cloud import expected_vector, expected_vectors

MODELS = ["gemini-embedding-001", "gemini-embedding-2", "text-embedding-005"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [0, 1, 2, 250])
def test_one_vector_per_text_always(case: Any, model: str, count: int) -> None:
    """Any number of texts, cut to 100 a call, give as many vectors on every model."""
    if case.on == "gemini" and model.startswith("text-"):
        return
    if case.on == "vertex" and model == "gemini-embedding-2":
        case.client = case.open(location="global")
    texts = [f"text {i}" for i in range(count)]
    dims = 256 if model.startswith("gemini") else None
    found = case.client.embed_contents(texts, model=model, output_dimensionality=dims)
    assert len(found) == count
    if count:
        np.testing.assert_array_equal(
            np.stack([one.values for one in found]),
            expected_vectors(texts, model=model, dims=dims),
        )


def test_one_text_one_vector(case: Any) -> None:
    """embed_content gives the vector of its text, as it came and not normalised."""
    found = case.client.embed_content("alpha", output_dimensionality=768, task_type="clustering")
    expected = expected_vector("alpha", dims=768, task_type="CLUSTERING")
    np.testing.assert_array_equal(found.values, expected)
    assert found.norm < 0.9
    assert abs(found.normalize().norm - 1.0) < 1e-6


def test_fewer_vectors_than_texts_are_an_error(case: Any) -> None:
    """An answer that is short is never given out as a list."""
    case.fault("fewer_vectors")
    with pytest.raises(AlignmentError, match="2 texts"):
        case.client.embed_contents(["a", "b"])


def test_dimensions_ignored_now(case: Any) -> None:
    """Full vectors in answer to fewer dimensions are cut."""
    case.fault("dims_ignored")
    found = case.client.embed_contents(["a", "b"], output_dimensionality=128)
    np.testing.assert_array_equal(found[1].values, expected_vector("b", dims=128))


def test_quota_errors_of_interactive_calls(case: Any) -> None:
    """429 without a hint is tried again with growing pauses, then told."""
    case.fault("rate_limited", match={"route": "*mbed*"})
    case.sleeps.clear()
    with pytest.raises(RateLimitError):
        case.client.embed_contents(["a", "b"])
    assert len(case.sleeps) == 4
    assert case.sleeps[-1] > case.sleeps[0]


def test_models_are_listed(case: Any) -> None:
    """The service's models, page by page behind the scenes."""
    case.fault("small_pages", size=1)
    names = [model.name for model in case.client.list_models()]
    assert "gemini-embedding-001" in names
    assert len(names) == len(set(names))


def test_one_client_both_clouds(kind: str, gemini: Any) -> None:
    """`auth=` on a call goes to the other cloud."""
    del kind
    client = gemini.open(
        auth="gemini",
        credentials=Credentials(token=gemini.cloud.access_token),
        project="p",
        location="us-central1",
        staging="gs://bucket/x",
        storage_base_url=gemini.cloud.storage_url,
        settings=CloudSettings(vertex_base_url=gemini.cloud.vertex_url),
    )
    here = client.async_batch_embed_contents(["a"], display_name="x")
    there = client.async_batch_embed_contents(["a"], display_name="x", auth="vertex_ai")
    assert here.name.startswith("batches/")
    assert there.name.startswith("projects/")
    gemini.cloud.finish(there.name)
    assert len(client.get_batch_embeddings(there.name, auth="vertex_ai")) == 1


def test_express_keys_serve_interactive_calls(vertex: Any) -> None:
    """A key without a project embeds now; batches need a project, and the error says so."""
    client = vertex.open(
        credentials=None, project=None, location=None, api_key=vertex.cloud.api_key
    )
    np.testing.assert_array_equal(client.embed_content("a").values, expected_vector("a"))
    with pytest.raises(ConfigError, match="project"):
        client.async_batch_embed_contents(["a"], display_name="x")


HALF = "canary \ud800"
WRONG: dict[str, Callable[[Any], object]] = {
    "display_name": lambda c: c.async_batch_embed_contents(["a"], display_name=HALF),
    "title": lambda c: c.embed_content("a", task_type="retrieval_document", title=HALF),
    "a title of a batch": lambda c: c.async_batch_embed_contents(
        ["a"], display_name="x", task_type="retrieval_document", title=HALF
    ),
    "model": lambda c: c.embed_content("a", model=HALF),
    "no model": lambda c: c.count_tokens("a", model=None),
    "a model that is a path": lambda c: c.count_tokens("a", model="../files?x"),
    "text": lambda c: c.embed_content(HALF),
    "counted text": lambda c: c.count_tokens(HALF),
    "task_type": lambda c: c.embed_content("a", task_type=3),
    "batch name": lambda c: c.get_batch_status("batches/x?y=1"),
    "file name": lambda c: c.delete_file("files/.."),
    "poll_interval": lambda c: c.await_batch_completion("batches/x", poll_interval=-1),
    "no poll_interval": lambda c: c.await_batch_completion("batches/x", poll_interval=0),
    "timeout": lambda c: c.await_batch_completion("batches/x", timeout=float("nan")),
}


@pytest.mark.parametrize("what", WRONG)
def test_arguments_that_cannot_be_sent(case: Any, what: str) -> None:
    """Whatever is wrong with an argument: an error of embatch that does not show it."""
    with pytest.raises(InvalidRequestError) as caught:
        WRONG[what](case.client)
    assert "canary" not in f"{caught.value} {caught.value.__context__!r}"
    assert case.cloud.bill().requests == {}


def test_credentials_are_looked_for_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's search may ask a metadata server: it is made when the client opens, not again."""
    import google.auth

    searched: list[object] = []

    def default(scopes: object) -> tuple[Credentials, str]:
        searched.append(scopes)
        return Credentials(token="t"), "a-project"

    monkeypatch.setattr(google.auth, "default", default)
    opened = (Client if kind == "Client" else AsyncClient)(
        auth="vertex_ai", settings=CloudSettings()
    )
    assert len(searched) == 1
    opened._cloud(None)
    assert len(searched) == 1


def test_no_credentials_name_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that finds nothing says what to set."""
    with pytest.raises(ConfigError, match=r"GOOGLE_API_KEY.*GOOGLE_GENAI_USE_VERTEXAI"):
        Client(settings=CloudSettings())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent.json")
    with pytest.raises(ConfigError, match="Google credentials"):
        Client(auth="vertex_ai", settings=CloudSettings())


def test_environment_finds_the_cloud(gemini: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client() goes by Google's own variables."""
    for name in ("GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", gemini.cloud.api_key)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", gemini.cloud.gemini_url)
    with Client() as client:
        assert client.embed_content("a").dimensionality == 3072


def test_vertex_without_staging(vertex: Any) -> None:
    """Batches on Vertex AI need a place in Cloud Storage; the error says how to give it."""
    client = vertex.open(staging=None)
    with pytest.raises(ConfigError, match="staging="):
        client.async_batch_embed_contents(["a"], display_name="x")


def test_keys_that_cannot_be_keys() -> None:
    """White space in a key is found before it breaks a header; the key is not shown."""
    with pytest.raises(ConfigError) as caught:
        Client(api_key="AIza-canary\n")
    assert "canary" not in str(caught.value)
    assert "x" not in repr(Secret("x" * 20)).replace("Secret(…)", "")
