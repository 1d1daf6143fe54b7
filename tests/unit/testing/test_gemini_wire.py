"""The Gemini API over a bare wire: shapes, refusals, access."""

import numpy as np
import orjson
import pytest

from embatch.testing.cloud import expected_vector

MODEL = "gemini-embedding-001"
CREATE = f"/v1beta/models/{MODEL}:asyncBatchEmbedContent"


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
    slow, quick = (wire.create(["a"], priority=priority).json["name"] for priority in (0, 5))
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


def test_count_tokens(wire):
    """Bytes over four, rounded up."""
    told = wire.post(f"/v1/models/{MODEL}:countTokens", {"contents": [content("12345")]}).json
    assert told["totalTokens"] == 2


def test_unknown_paths_and_broken_json(wire):
    """404 and 400 in Google's shape."""
    assert wire.get("/v1/nothing").error["status"] == "NOT_FOUND"
    assert wire.post(CREATE, b"{").error["status"] == "INVALID_ARGUMENT"
