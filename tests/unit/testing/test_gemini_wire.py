"""The Gemini API over a bare wire: shapes, refusals, access."""

import base64
import hashlib
import http.client
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest

from embatch.testing.cloud import expected_vector

MODEL = "gemini-embedding-001"
CREATE = f"/v1beta/models/{MODEL}:asyncBatchEmbedContent"
CHUNK = 8 << 20


def content(text):
    return {"parts": [{"text": text}]}


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_every_version_serves_the_same(wire, version):
    """v1, v1beta and v1alpha know the same routes."""
    names = [model["name"] for model in wire.get(f"/{version}/models").json["models"]]
    assert f"models/{MODEL}" in names
    assert wire.get(f"/{version}/models/{MODEL}").json["inputTokenLimit"] == 2048


# Access


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"x-goog-api-key": "fake-cloud-api-key"}, "", 200),
        ({}, "?key=fake-cloud-api-key", 200),
        ({"Authorization": "Bearer fake-cloud-access-token"}, "", 200),
        ({"x-goog-api-key": "wrong"}, "", 400),
        ({}, "", 403),
        ({"Authorization": "Bearer wrong"}, "", 401),
    ],
)
def test_access(wire, headers, query, status):
    """Header, query and bearer open; a wrong key is 400, none 403, a wrong token 401."""
    assert wire.send("GET", "/v1/models" + query, key=None, headers=headers).status == status


def test_a_wrong_key_is_named_in_the_details(wire):
    """400 INVALID_ARGUMENT with reason API_KEY_INVALID, not 401."""
    error = wire.send("GET", "/v1/models", key="wrong").error
    assert error["status"] == "INVALID_ARGUMENT"
    (reason,) = [d["reason"] for d in error["details"] if d["@type"].endswith("ErrorInfo")]
    assert reason == "API_KEY_INVALID"


# Interactive


def test_embed_content(wire):
    """One content, one vector, its tokens."""
    body = {"content": content("hi"), "output_dimensionality": 128, "taskType": "CLUSTERING"}
    told = wire.post(f"/v1/models/{MODEL}:embedContent", body).json
    values = np.array(told["embedding"]["values"], dtype=np.float32)
    assert np.array_equal(values, expected_vector("hi", dims=128, task_type="clustering"))
    assert told["usageMetadata"]["promptTokenCount"] == 1


def test_batch_embed_contents_takes_a_hundred(wire):
    """101 is the 400 of the page."""
    one = {"model": f"models/{MODEL}", "content": content("x")}
    path = f"/v1/models/{MODEL}:batchEmbedContents"
    assert len(wire.post(path, {"requests": [one] * 100}).json["embeddings"]) == 100
    refused = wire.post(path, {"requests": [one] * 101})
    assert refused.status == 400
    assert refused.error["message"] == (
        "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"outputDimensionality": 64},
        {"outputDimensionality": 4000},
        {"taskType": "RETRIEVAL"},
        {"title": "t"},
        {"content": content("")},
        {"content": None},
        {"model": "models/other"},
    ],
)
def test_bad_requests_are_refused(wire, change):
    """Wrong dims, task, title without its task, no content, another model."""
    body = {"content": content("x"), **change}
    assert wire.post(f"/v1/models/{MODEL}:embedContent", body).status == 400


@pytest.mark.parametrize("model", ["no-such", "gemini-2.5-flash", "text-embedding-004"])
def test_models_without_embeddings_are_404(wire, model):
    """Unknown, retired, or without the method."""
    for call in ("embedContent", "asyncBatchEmbedContent"):
        reply = wire.post(f"/v1/models/{model}:{call}", {"content": content("x")})
        assert (reply.status, reply.error["status"]) == (404, "NOT_FOUND")


def test_several_parts_are_one_vector(wire):
    """Parts of one content are read together."""
    body = {"content": {"parts": [{"text": "a"}, {"text": "b"}]}}
    told = wire.post(f"/v1/models/{MODEL}:embedContent", body).json
    values = np.array(told["embedding"]["values"], dtype=np.float32)
    assert np.array_equal(values, expected_vector("a\nb"))


# Batches


def test_a_new_batch_is_pending_and_not_done(wire):
    """The first answer: no done, no response, counts as strings, zero counts left out."""
    operation = wire.create(["a", "b"], name="n", priority=-3).json
    assert set(operation) == {"name", "metadata"}
    metadata = operation["metadata"]
    assert len(operation["name"]) == len("batches/") + 36
    assert metadata["name"] == operation["name"]
    assert metadata["@type"].endswith("v1main.EmbedContentBatch")
    assert metadata["state"] == "BATCH_STATE_PENDING"
    assert metadata["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}
    assert metadata["inputConfig"]["fileName"].startswith("files/")
    assert (metadata["displayName"], metadata["priority"]) == ("n", "-3")


def test_inline_batches_answer_inline_twice(wire):
    """Items stand in metadata.output and in response, metadata echoed; the input is not."""
    operation = wire.finished(["a", ""], inline=True)
    assert "inputConfig" not in operation["metadata"]
    items = operation["response"]["inlinedResponses"]["inlinedResponses"]
    assert items == operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert [item["metadata"] for item in items] == [{"key": "k0"}, {"key": "k1"}]
    assert len(items[0]["response"]["embedding"]["values"]) == 128
    assert items[1]["error"] == {"code": 3, "message": "content is empty"}
    assert operation["metadata"]["batchStats"]["failedRequestCount"] == "1"


def test_metadata_comes_back_as_it_was_sent(wire):
    """Any JSON types."""
    sent = {"n": 1, "f": 0.5, "list": [True, None, {"x": "ü"}], "big": 2**53}
    row = {"request": {"content": content("a")}, "metadata": sent}
    body = {"batch": {"input_config": {"requests": {"requests": [row]}}}}
    name = wire.post(CREATE, body).json["name"]
    wire.cloud.finish(name)
    (item,) = wire.get(f"/v1/{name}").json["response"]["inlinedResponses"]["inlinedResponses"]
    assert item["metadata"] == sent


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"content":{"parts":[{"text":"bare"}]}}', "No request specified"),
        (b'{"request":', "Invalid JSON"),
        (b'{"request":{}}', "content is required."),
        (b'{"request":{"content":{"parts":[{"text":"a"}]},"outputDimensionality":5}}', "output"),
    ],
)
def test_a_bad_row_refuses_the_create_and_names_its_line(wire, cloud, line, message):
    """One bad row: nothing is created."""
    good = b'{"request":{"content":{"parts":[{"text":"a"}]}}}'
    reply = wire.create(rows=b"\n".join([good, line, good]))
    assert reply.status == 400
    assert reply.error["message"].startswith(f"Error on line 2: {message}")
    assert cloud.bill().jobs_created == {}


@pytest.mark.parametrize("config", [{}, {"fileName": "files/x", "requests": {"requests": []}}])
def test_one_kind_of_input_is_required(wire, config):
    """A file or requests, not both, not neither."""
    assert wire.post(CREATE, {"batch": {"inputConfig": config}}).status == 400


def test_inline_bodies_over_20_mb_are_refused(wire, cloud):
    """The whole body counts."""
    rows = [{"request": {"content": content("x" * 1_000_000)}} for _ in range(21)]
    body = {"batch": {"inputConfig": {"requests": {"requests": rows}}}}
    assert wire.post(CREATE, body).status == 400
    assert cloud.bill().jobs_created == {}


def test_snake_case_is_understood_everywhere(wire):
    """display_name, input_config, file_name, task_type, output_dimensionality."""
    request = {"content": content("a"), "task_type": "CLUSTERING", "output_dimensionality": 128}
    name = wire.upload(orjson.dumps({"key": "k", "request": request}))
    body = {"batch": {"display_name": "s", "input_config": {"file_name": name}}}
    operation = wire.post(CREATE, body).json
    assert operation["metadata"]["displayName"] == "s"
    wire.cloud.finish(operation["name"])
    (line,) = wire.lines(wire.get(f"/v1/{operation['name']}").json)
    values = np.array(orjson.loads(line)["response"]["embedding"]["values"], dtype=np.float32)
    assert np.array_equal(values, expected_vector("a", dims=128, task_type="CLUSTERING"))


def test_a_row_without_a_key_comes_back_without_one(wire):
    """No key in, no key out; duplicate keys are taken."""
    row = b'{"request":{"content":{"parts":[{"text":"a"}]}}}'
    keyed = b'{"key":"d","request":{"content":{"parts":[{"text":"a"}]}}}'
    name = wire.create(rows=b"\n".join([row, keyed, keyed])).json["name"]
    wire.cloud.finish(name)
    rows = [orjson.loads(line) for line in wire.lines(wire.get(f"/v1/{name}").json)]
    assert [row.get("key") for row in rows] == [None, "d", "d"]


def test_priority_can_be_changed(wire):
    """PATCH answers the batch, not an operation."""
    name = wire.create(["a"]).json["name"]
    path = f"/v1beta/{name}:updateEmbedContentBatch"
    told = wire.send("PATCH", path, {"priority": "7"}, updateMask="priority").json
    assert told["priority"] == "7"
    assert "metadata" not in told


def test_urgent_jobs_come_first(wire, cloud):
    """Of jobs due together the higher priority ends first."""
    slow, quick = (wire.create(["a"], name=n, priority=p).json["name"] for n, p in zip("ab", (0, 5)))
    cloud.advance(1)
    assert [job.name for job in cloud.bill().jobs] == [quick, slow]


def test_delete_hides_and_removes_the_results(wire, cloud):
    """A second delete and the result file are 404."""
    operation = wire.finished(["a"])
    path = f"/v1beta/{operation['name']}"
    assert wire.send("DELETE", path, {}).json == {}
    assert wire.send("DELETE", path).status == 404
    assert wire.get(path).status == 404
    file = operation["response"]["responsesFile"]
    assert wire.get(f"/v1beta/{file}:download", alt="media").status == 404


def test_deleting_a_running_job_does_not_stop_the_bill(wire, cloud):
    """It goes on unseen."""
    name = wire.create(["a", "b"]).json["name"]
    assert wire.send("DELETE", f"/v1beta/{name}").status == 200
    assert wire.get(f"/v1beta/{name}").status == 404
    cloud.advance(1)
    assert cloud.bill().rows == 2


def test_page_tokens_must_be_encoded(wire):
    """A token holds + and /: sent raw it is refused."""
    for _ in range(3):
        wire.create(["a"])
    token = wire.get("/v1/batches", pageSize=1).json["nextPageToken"]
    assert wire.send("GET", f"/v1/batches?pageToken={token}").status == 400
    assert len(wire.get("/v1/batches", pageToken=token).json["operations"]) == 2


# Files


def start(wire, size, **file):
    return wire.send(
        "POST",
        "/upload/v1/files",
        {"file": file},
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
        },
    )


def test_resumable_upload_in_chunks(wire):
    """Granularity and offset are held; the hash is base64 of the hex digest."""
    whole = b"ab" * (CHUNK // 2) + b"tail"
    began = start(wire, len(whole), display_name="d", name="files/my-id")
    assert began.headers["x-goog-upload-chunk-granularity"] == str(CHUNK)
    place = began.headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    assert wire.chunk(place, 0, whole[:1000]).status == 400
    middle = wire.chunk(place, 0, whole[:CHUNK])
    assert (middle.status, middle.headers["x-goog-upload-status"]) == (200, "active")
    wrong = wire.chunk(place, 0, whole[:CHUNK])
    assert (wrong.status, wrong.headers["x-goog-upload-size-received"]) == (400, str(CHUNK))
    done = wire.chunk(place, CHUNK, whole[CHUNK:], final=True)
    assert done.headers["x-goog-upload-status"] == "final"
    file = done.json["file"]
    assert (file["name"], file["sizeBytes"], file["state"]) == (
        "files/my-id",
        str(len(whole)),
        "ACTIVE",
    )
    told = base64.b64decode(file["sha256Hash"]).decode()
    assert told == hashlib.sha256(whole).hexdigest()


def test_finalize_short_of_the_size_is_refused(wire):
    """The announced length is held."""
    place = start(wire, 10).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    assert wire.chunk(place, 0, b"short", final=True).status == 400
    assert wire.chunk(place, 0, b"0123456789", final=True).status == 200


def test_upload_can_be_cancelled(wire):
    """Afterwards it takes nothing."""
    place = start(wire, 4).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    headers = {"X-Goog-Upload-Command": "cancel"}
    assert wire.send("POST", place, b"", key=None, headers=headers).status == 200
    assert wire.chunk(place, 0, b"1234", final=True).status == 400


def test_starting_an_upload_needs_a_key(wire):
    """The start does; chunks are known by their upload id."""
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
    assert wire.send("POST", "/upload/v1/files", {}, key=None, headers=headers).status == 403
    assert wire.send("POST", "/upload/v1/files?upload_id=no", b"", key=None).status == 404


def test_multipart_upload(wire):
    """JSON and bytes in one body."""
    body = (
        b"--xx\r\nContent-Type: application/json\r\n\r\n"
        b'{"file":{"displayName":"m","mimeType":"application/jsonl"}}\r\n'
        b"--xx\r\nContent-Type: text/plain\r\n\r\nline one\r\nline two\r\n--xx--\r\n"
    )
    reply = wire.send(
        "POST",
        "/upload/v1beta/files?uploadType=multipart",
        body,
        headers={"Content-Type": "multipart/related; boundary=xx"},
    )
    file = reply.json["file"]
    assert (file["displayName"], file["mimeType"]) == ("m", "application/jsonl")
    digest = hashlib.sha256(b"line one\r\nline two").hexdigest()
    assert base64.b64decode(file["sha256Hash"]).decode() == digest


def test_chunked_transfer_is_understood(wire):
    """A body without a length."""
    place = start(wire, 8).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    connection = http.client.HTTPConnection(urlsplit(wire.cloud.url).netloc, timeout=20)
    headers = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
    connection.request("POST", place, iter([b"1234", b"5678"]), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert orjson.loads(answer.read())["file"]["sizeBytes"] == "8"
    connection.close()


def test_files_are_listed_deleted_and_expire(wire, cloud):
    """Ten a page; a deleted, unknown or expired file is 403."""
    names = [wire.upload(b"x") for _ in range(12)]
    page = wire.get("/v1/files").json
    assert len(page["files"]) == 10
    assert len(wire.get("/v1/files", pageToken=page["nextPageToken"]).json["files"]) == 2
    assert wire.send("DELETE", f"/v1/{names[0]}").json == {}
    assert wire.send("DELETE", f"/v1/{names[0]}").status == 403
    assert wire.get("/v1/files/unknown").status == 403
    cloud.advance(48 * 3600 + 1)
    assert wire.get(f"/v1/{names[1]}").status == 403
    assert wire.get("/v1/files").json == {}


def test_uploads_cannot_be_downloaded_and_results_not_deleted(wire):
    """Only generated files come down; they go with their batch."""
    name = wire.upload(b"x")
    assert wire.get(f"/v1/{name}:download", alt="media").status == 400
    result = wire.finished(["a"])["response"]["responsesFile"]
    assert len(result.removeprefix("files/")) == 42
    assert wire.send("DELETE", f"/v1/{result}").status == 400
    assert f"/{result}" not in str(wire.get("/v1/files").json)
    for path in (f"/v1/{result}:download", f"/download/v1alpha/{result}:download"):
        reply = wire.get(path, alt="media")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/jsonl")


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [("bytes=0-4", 206, slice(0, 5)), ("bytes=5-", 206, slice(5, None)), ("bytes=-7", 206, -7)],
)
def test_ranges(wire, asked, status, part):
    """First, last and open ranges."""
    result = wire.finished(["a"])["response"]["responsesFile"]
    path = f"/v1/{result}:download?alt=media"
    whole = wire.send("GET", path).body
    reply = wire.send("GET", path, headers={"Range": asked})
    expected = whole[part:] if isinstance(part, int) else whole[part]
    assert (reply.status, reply.body) == (status, expected)
    beyond = wire.send("GET", path, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status == 416


def test_count_tokens(wire):
    """Bytes over four, rounded up."""
    told = wire.post(f"/v1/models/{MODEL}:countTokens", {"contents": [content("12345")]}).json
    assert told["totalTokens"] == 2


def test_unknown_paths_and_broken_json(wire):
    """404 and 400 in Google's shape."""
    assert wire.get("/v1/nothing").error["status"] == "NOT_FOUND"
    assert wire.post(CREATE, b"{").error["status"] == "INVALID_ARGUMENT"
