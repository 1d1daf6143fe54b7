"""The official google-genai client, unmodified, against the fake cloud."""

import os
import threading
import time
import warnings

import google.auth.credentials
import numpy as np
import obstore
import orjson
import pytest
from google import genai
from google.genai import errors, types
from obstore.store import GCSStore

from embatch.testing.cloud import FakeCloud, Fault, expected_vector

MODEL = "gemini-embedding-001"
TEXTS = [f"text {n}" for n in range(5)]


class StaticToken(google.auth.credentials.Credentials):
    def __init__(self, token):
        super().__init__()
        self.token = token

    def refresh(self, request):
        raise AssertionError("the token does not run out")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "GEMINI_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def experimental():
    """create_embeddings warns that it is experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_embeddings.* is experimental.*")
        yield


@pytest.fixture
def cloud():
    with FakeCloud() as running:
        yield running


@pytest.fixture(params=["v1", "v1beta"])
def client(cloud, request):
    options = types.HttpOptions(base_url=cloud.gemini_url, api_version=request.param)
    with genai.Client(api_key=cloud.api_key, http_options=options) as made:
        yield made


@pytest.fixture
def vertex(cloud):
    options = types.HttpOptions(base_url=cloud.vertex_url)
    with genai.Client(
        vertexai=True,
        project="demo",
        location="us-central1",
        credentials=StaticToken(cloud.access_token),
        http_options=options,
    ) as made:
        yield made


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        for n, text in enumerate(TEXTS):
            request = {"content": {"parts": [{"text": text}]}, "output_dimensionality": 256}
            file.write(orjson.dumps({"key": f"k{n}", "request": request}) + b"\n")
    return path


def finished(client, job):
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while not job.done:
        assert time.monotonic() < deadline
        pause.wait(0.01)
        job = client.batches.get(name=job.name)
    return job


def inline_job(client, name="inline"):
    config = types.EmbedContentConfig(output_dimensionality=256, task_type="CLUSTERING")
    source = types.EmbeddingsBatchJobSource(
        inlined_requests=types.EmbedContentBatch(contents=TEXTS, config=config)
    )
    return client.batches.create_embeddings(model=MODEL, src=source, config={"display_name": name})


def file_job(client, path, name="file"):
    file = client.files.upload(file=path, config={"mime_type": "application/jsonl"})
    return client.batches.create_embeddings(
        model=MODEL,
        src=types.EmbeddingsBatchJobSource(file_name=file.name),
        config={"display_name": name},
    )


def same(values, text, **more):
    return np.array_equal(np.array(values, dtype=np.float32), expected_vector(text, **more))


def test_models(client):
    """models.list and models.get."""
    assert f"models/{MODEL}" in [model.name for model in client.models.list()]
    assert client.models.get(model=MODEL).input_token_limit == 2048


def test_embed_content_one_and_many(client):
    """A text, a list of texts on 001, and the one vector that 2 makes of a list."""
    config = types.EmbedContentConfig(output_dimensionality=128, task_type="RETRIEVAL_QUERY")
    one = client.models.embed_content(model=MODEL, contents="x", config=config).embeddings
    assert [same(e.values, "x", dims=128, task_type="RETRIEVAL_QUERY") for e in one] == [True]
    many = client.models.embed_content(model=MODEL, contents=TEXTS).embeddings
    assert [same(e.values, t) for e, t in zip(many, TEXTS, strict=True)] == [True] * 5
    merged = client.models.embed_content(model="gemini-embedding-2", contents=["a", "b"])
    assert len(merged.embeddings) == 1


def test_more_than_a_hundred_contents_are_refused(client):
    """ClientError with the page's words."""
    with pytest.raises(errors.ClientError, match="at most 100 requests"):
        client.models.embed_content(model=MODEL, contents=["x"] * 101)


def test_count_tokens(client):
    """models.count_tokens."""
    assert client.models.count_tokens(model=MODEL, contents="hello world").total_tokens == 3


def test_files(client, tmp_path):
    """files.upload in two chunks, get, list, delete."""
    path = tmp_path / "big.jsonl"
    path.write_bytes(b"0123456789abcdef" * 600_000)
    file = client.files.upload(
        file=path, config={"mime_type": "application/jsonl", "display_name": "big"}
    )
    assert (file.size_bytes, file.display_name) == (9_600_000, "big")
    assert file.state == types.FileState.ACTIVE
    assert client.files.get(name=file.name).sha256_hash == file.sha256_hash
    assert [listed.name for listed in client.files.list()] == [file.name]
    client.files.delete(name=file.name)
    with pytest.raises(errors.ClientError) as gone:
        client.files.get(name=file.name)
    assert gone.value.code == 403


def test_inline_batch(client):
    """batches.create_embeddings with contents; results stand in the job."""
    job = finished(client, inline_job(client))
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    items = job.dest.inlined_embed_content_responses
    for item, text in zip(items, TEXTS, strict=True):
        values = item.response.embedding.values
        assert same(values, text, dims=256, task_type="CLUSTERING")


def test_file_batch_and_download(client, rows_file, tmp_path):
    """batches.create_embeddings with a file; results are downloaded whole and streamed."""
    job = finished(client, file_job(client, rows_file))
    content = client.files.download(file=job.dest.file_name)
    rows = [orjson.loads(line) for line in content.splitlines()]
    for row, text in zip(rows, TEXTS, strict=True):
        assert same(row["response"]["embedding"]["values"], text, dims=256)
    assert [row["key"] for row in rows] == [f"k{n}" for n in range(5)]


def test_list_cancel_delete(client, cloud):
    """batches.list over pages, cancel, delete."""
    cloud.add_fault(Fault("job_stuck"))
    names = [inline_job(client, f"job-{n}").name for n in range(5)]
    listed = [job.name for job in client.batches.list(config={"page_size": 2})]
    assert listed == names[::-1]
    client.batches.cancel(name=names[0])
    job = finished(client, client.batches.get(name=names[0]))
    assert job.state == types.JobState.JOB_STATE_CANCELLED
    client.batches.delete(name=names[0])
    assert names[0] not in [job.name for job in client.batches.list()]


def test_wrong_key(cloud):
    """A ClientError of 400, API key not valid."""
    options = types.HttpOptions(base_url=cloud.gemini_url)
    with (
        genai.Client(api_key="wrong", http_options=options) as client,
        pytest.raises(errors.ClientError, match="API key not valid") as refused,
    ):
        list(client.models.list())
    assert refused.value.code == 400


def test_row_errors_and_failed_jobs(client, cloud, rows_file):
    """Row errors are items; a failed job is FAILED, without its error."""
    cloud.add_fault(Fault("row_error", {"display_name": "inline"}, args={"indices": [1]}))
    cloud.add_fault(Fault("job_failed", {"display_name": "file"}))
    items = finished(client, inline_job(client)).dest.inlined_embed_content_responses
    assert [item.error.code if item.error else None for item in items] == [None, 13] + [None] * 3
    job = finished(client, file_job(client, rows_file))
    assert job.state == types.JobState.JOB_STATE_FAILED


def test_details_in_row_errors_break_the_client(client, cloud):
    """What the fake shows on request is what breaks it for real."""
    cloud.add_fault(Fault("row_error", args={"indices": [1], "details": True}))
    job = inline_job(client)
    with pytest.raises(ValueError, match="details"):
        finished(client, job)


def test_its_retries_make_two_jobs(cloud):
    """HttpRetryOptions repeats a create that answered 503 though it took effect."""
    lost = Fault("server_error", {"route": "batches.create"}, times=1, args={"after": True})
    cloud.add_fault(lost)
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.01, max_delay=0.01, jitter=0.0)
    options = types.HttpOptions(base_url=cloud.gemini_url, retry_options=retry)
    with genai.Client(api_key=cloud.api_key, http_options=options) as client:
        finished(client, inline_job(client, "twice"))
    assert cloud.bill().duplicate_jobs == {"twice": 2}


# Vertex AI


def put(cloud, key, body):
    store = GCSStore(
        "bucket",
        base_url=cloud.storage_url,
        bearer_token=cloud.access_token,
        client_options={"allow_http": True},
    )
    obstore.put(store, key, body)
    return store


def test_vertex_batch(cloud, vertex):
    """batches.create over gs://, get, list, delete; output found below its directory."""
    rows = b"".join(
        orjson.dumps({"key": str(n), "request": {"content": {"parts": [{"text": text}]}}}) + b"\n"
        for n, text in enumerate(TEXTS)
    )
    store = put(cloud, "in/rows.jsonl", rows)
    job = vertex.batches.create(model=MODEL, src="gs://bucket/in/rows.jsonl")
    assert job.dest.gcs_uri == "gs://bucket/in/rows/dest"
    job = finished(vertex, job)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    assert job.completion_stats.successful_count == 5
    folder = job.output_info.gcs_output_directory.removeprefix("gs://bucket/")
    (found,) = [entry for block in obstore.list(store, folder) for entry in block]
    lines = bytes(obstore.get(store, found["path"]).bytes()).splitlines()
    for line, text in zip(lines, TEXTS, strict=True):
        assert same(orjson.loads(line)["response"]["embedding"]["values"], text)
    assert [listed.name for listed in vertex.batches.list()] == [job.name]
    bare = job.name.rsplit("/", 1)[-1]
    assert vertex.batches.get(name=bare).name == job.name
    assert vertex.batches.delete(name=job.name).done is True
    assert list(vertex.batches.list()) == []


def test_vertex_cancel(cloud, vertex):
    """batches.cancel ends a job that hangs."""
    put(cloud, "rows.jsonl", b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n')
    cloud.add_fault(Fault("job_stuck"))
    job = vertex.batches.create(model=MODEL, src="gs://bucket/rows.jsonl")
    vertex.batches.cancel(name=job.name)
    assert finished(vertex, job).state == types.JobState.JOB_STATE_CANCELLED


def test_vertex_interactive(cloud, vertex):
    """embed_content by :embedContent, :batchEmbedContents and :predict."""
    for model, contents in ((MODEL, "a"), (MODEL, ["a", "b"]), ("text-embedding-005", ["a"])):
        told = vertex.models.embed_content(model=model, contents=contents).embeddings
        texts = [contents] if isinstance(contents, str) else contents
        assert [same(e.values, t, model=model) for e, t in zip(told, texts, strict=True)]
    routes = cloud.bill().requests
    assert {"vertex.embedContent", "vertex.batchEmbedContents", "vertex.predict"} <= set(routes)


def test_vertex_express(cloud):
    """A key, no project."""
    options = types.HttpOptions(base_url=cloud.vertex_url)
    with genai.Client(vertexai=True, api_key=cloud.api_key, http_options=options) as client:
        told = client.models.embed_content(model="gemini-embedding-2", contents="a").embeddings
    assert same(told[0].values, "a", model="gemini-embedding-2")


def test_vertex_base_url_without_project_drops_the_path(cloud):
    """The client's own trap: it calls POST /, which is 404."""
    options = types.HttpOptions(base_url=cloud.vertex_url)
    with (
        genai.Client(
            vertexai=True, credentials=StaticToken(cloud.access_token), http_options=options
        ) as client,
        pytest.raises(errors.ClientError) as refused,
    ):
        client.models.embed_content(model=MODEL, contents="a")
    assert refused.value.code == 404
