"""Vertex AI and Cloud Storage over a bare wire, and their faults."""

import numpy as np
import orjson
import pytest

from embatch.testing.cloud import Fault, expected_vector

PARENT = "/v1/projects/demo/locations/us-central1"
JOBS = PARENT + "/batchPredictionJobs"


class Vertex:
    def __init__(self, wire):
        self.wire = wire
        self.headers = {"Authorization": f"Bearer {wire.cloud.access_token}"}

    def send(self, method, path, body=None, **query):
        return self.wire.send(method, path, body, headers=self.headers, **query)

    def create(self, rows, model="gemini-embedding-001", jobs=JOBS, **changes):
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        assert self.send("PUT", "/storage/bucket/in.jsonl", lines).status == 200
        body = {
            "displayName": "v",
            "model": f"publishers/google/models/{model}",
            "inputConfig": {
                "instancesFormat": "jsonl",
                "gcsSource": {"uris": ["gs://bucket/in.jsonl"]},
            },
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": "gs://bucket/out"},
            },
        }
        return self.send("POST", jobs, {**body, **changes})

    def finished(self, rows, **more):
        job = self.create(rows, **more).json
        self.wire.cloud.finish(job["name"])
        return self.send("GET", f"/v1/{job['name']}").json

    def outputs(self, job):
        prefix = job["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://bucket/")
        listed = self.send("GET", "/storage/bucket", **{"list-type": 2, "prefix": prefix})
        keys = listed.body.decode().split("<Key>")[1:]
        keys = [key.split("</Key>")[0] for key in keys]
        return {key: self.send("GET", f"/storage/bucket/{key}").body.splitlines() for key in keys}

    def results(self, job):
        return [orjson.loads(line) for lines in self.outputs(job).values() for line in lines]


@pytest.fixture
def vertex(wire):
    return Vertex(wire)


def row(n, **config):
    request = {"content": {"parts": [{"text": f"t{n}"}]}}
    if config:
        request["embed_content_config"] = config
    return {"key": str(n), "request": request}


ROWS = [row(n, output_dimensionality=128) for n in range(6)]


def test_a_job_reads_and_writes_cloud_storage(vertex):
    """Vectors stand under the output directory, by key, with the request echoed."""
    job = vertex.finished(ROWS)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "6"}
    results = vertex.results(job)
    for one in results:
        text = one["request"]["content"]["parts"][0]["text"]
        values = np.array(one["response"]["embedding"]["values"], dtype=np.float32)
        assert np.array_equal(values, expected_vector(text, dims=128))
        assert one["response"]["tokenCount"] == "1"
    assert [one["key"] for one in results] == [str(n) for n in range(6)]


def test_legacy_models_speak_their_own_dialect(vertex):
    """text-embedding-005 takes flat rows and answers predictions, matched by instance."""
    job = vertex.finished([{"content": "a"}, {"content": ""}], model="text-embedding-005")
    good, bad = vertex.results(job)
    assert good["instance"] == {"content": "a"}
    assert good["status"] == ""
    values = np.array(good["predictions"][0]["embeddings"]["values"], dtype=np.float32)
    assert np.array_equal(values, expected_vector("a", model="text-embedding-005"))
    assert bad["status"].startswith("INVALID_ARGUMENT")
    assert bad["predictions"] == []


def test_bad_rows_fail_alone(vertex):
    """Vertex does not read the rows at create: a bad one is a row with a status."""
    job = vertex.finished([ROWS[0], {"content": "bare"}, ROWS[1]])
    assert job["completionStats"] == {"successfulCount": "2", "failedCount": "1"}
    assert [bool(one.get("status")) for one in vertex.results(job)] == [False, True, False]


def test_a_missing_input_fails_the_job(vertex):
    """The job is made, and fails when it runs."""
    source = {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://bucket/none.jsonl"]}}
    job = vertex.finished([], inputConfig=source)
    assert job["state"] == "JOB_STATE_FAILED"
    assert "not found" in job["error"]["message"]


def test_models_live_in_their_regions(vertex):
    """gemini-embedding-2 is at home in global, us and eu only."""
    assert vertex.create(ROWS, model="gemini-embedding-2").status == 404
    jobs = JOBS.replace("us-central1", "global")
    assert vertex.create(ROWS, model="gemini-embedding-2", jobs=jobs).status == 200
    assert vertex.create(ROWS, jobs=jobs).status == 404


def test_bigquery_is_refused(vertex):
    """Gemini models read Cloud Storage only."""
    source = {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": "bq://p.d.t"}}
    assert vertex.create(ROWS, inputConfig=source).status == 400


def test_list_filter_cancel_delete(vertex, cloud):
    """Jobs are found by display name; deleting one takes its end."""
    name = vertex.create(ROWS, displayName="mine").json["name"]
    vertex.create(ROWS, displayName="other")
    listed = vertex.send("GET", JOBS, filter='display_name="mine"').json
    assert [job["name"] for job in listed["batchPredictionJobs"]] == [name]
    assert len(vertex.send("GET", JOBS).json["batchPredictionJobs"]) == 2
    refused = vertex.send("DELETE", f"/v1/{name}")
    assert refused.error["status"] == "FAILED_PRECONDITION"
    assert vertex.send("POST", f"/v1/{name}:cancel").json == {}
    cloud.advance(0)
    assert vertex.send("GET", f"/v1/{name}").json["state"] == "JOB_STATE_CANCELLED"
    assert vertex.send("DELETE", f"/v1/{name}").json["done"] is True
    assert vertex.send("GET", f"/v1/{name}").status == 404


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 401),
        ("GET", {"Authorization": "Bearer wrong"}, 401),
        ("GET", {"x-goog-api-key": "fake-cloud-api-key"}, 401),
    ],
)
def test_vertex_wants_a_bearer_token(wire, method, headers, status):
    """A project's routes take no API key."""
    reply = wire.send(method, JOBS, key=None, headers=headers)
    assert (reply.status, reply.error["status"]) == (status, "UNAUTHENTICATED")


def test_issued_tokens_run_out(wire, cloud):
    """`/token` issues tokens that are good for an hour, or until they are revoked."""
    token = wire.send("POST", "/token", b"", key=None).json["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert wire.send("GET", JOBS, headers=headers).status == 200
    cloud.advance(3601)
    assert wire.send("GET", JOBS, headers=headers).status == 401
    token = wire.send("POST", "/token", b"", key=None).json["access_token"]
    cloud.revoke_tokens()
    assert wire.send("GET", JOBS, headers={"Authorization": f"Bearer {token}"}).status == 401


def test_express_mode_takes_a_key_for_interactive_calls(wire):
    """No project, no location, a key."""
    path = "/v1beta1/publishers/google/models/gemini-embedding-2:embedContent"
    body = {
        "content": {"parts": [{"text": "x"}]},
        "embedContentConfig": {"outputDimensionality": 128},
    }
    values = wire.send("POST", path, body).json["embedding"]["values"]
    expected = expected_vector("x", model="gemini-embedding-2", dims=128)
    assert np.array_equal(np.array(values, dtype=np.float32), expected)


def test_predict_speaks_for_older_models(vertex):
    """`:predict` for text-embedding-005; gemini-embedding-2 refuses it."""
    models = PARENT + "/publishers/google/models/"
    body = {"instances": [{"content": "a"}], "parameters": {"outputDimensionality": 64}}
    told = vertex.send("POST", models + "text-embedding-005:predict", body).json
    assert len(told["predictions"][0]["embeddings"]["values"]) == 64
    assert told["metadata"] == {"billableCharacterCount": 1}
    assert vertex.send("POST", models + "gemini-embedding-2:predict", body).status == 400


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("text-embedding-005", {"instances": [{"content": "12345"}]}),
        ("gemini-embedding-001", {"contents": [{"parts": [{"text": "12345"}]}]}),
    ],
)
def test_tokens_are_counted_as_the_model_is_asked(vertex, model, asked):
    """Instances for older models, contents for the others; neither takes the other's."""
    path = f"{PARENT}/publishers/google/models/{model}:countTokens"
    assert vertex.send("POST", path, asked).json["totalTokens"] == 2
    other = {"instances": [{"content": "a"}], "contents": [{"parts": [{"text": "a"}]}]}
    del other[next(iter(asked))]
    assert vertex.send("POST", path, other).status == 400


# Faults


def test_job_partial(vertex, cloud):
    """PARTIALLY_SUCCEEDED when rows failed."""
    cloud.add_fault(Fault("job_partial"))
    cloud.add_fault(Fault("row_error", args={"indices": [0]}))
    job = vertex.finished(ROWS)
    assert job["state"] == "JOB_STATE_PARTIALLY_SUCCEEDED"
    assert vertex.results(job)[0]["status"] == "INTERNAL: Internal error encountered."


def test_output_shards(vertex, cloud):
    """Several output files hold the rows together."""
    cloud.add_fault(Fault("output_shards", args={"count": 3}))
    rows = [row(n, output_dimensionality=128) for n in range(1200)]
    outputs = vertex.outputs(vertex.finished(rows))
    assert len(outputs) == 3
    assert [len(lines) for lines in outputs.values()] == [512, 512, 176]


def test_dims_ignored_on_vertex(vertex, cloud):
    """The full 3072 come back."""
    cloud.add_fault(Fault("dims_ignored"))
    (one,) = vertex.results(vertex.finished(ROWS[:1]))
    assert len(one["response"]["embedding"]["values"]) == 3072


def test_storage_faults_strike_by_route(vertex, cloud):
    """A put may fail, and works the next time."""
    cloud.add_fault(Fault("server_error", {"route": "storage.put"}, times=1))
    assert vertex.send("PUT", "/storage/bucket/x", b"1").status == 503
    assert vertex.send("PUT", "/storage/bucket/x", b"1").status == 200
