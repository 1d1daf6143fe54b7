"""The fake cloud itself stays sound, whatever is sent."""

import http.client
import threading

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embatch.testing.cloud import CloudCrashedError, FakeCloud

WORDS = [
    "batch",
    "inputConfig",
    "fileName",
    "requests",
    "request",
    "content",
    "parts",
    "text",
    "metadata",
    "priority",
    "file",
    "name",
    "instances",
    "parameters",
    "outputDimensionality",
    "embedContentConfig",
    "gcsSource",
    "uris",
    "outputConfig",
    "contents",
    "model",
]
LEAVES = st.none() | st.booleans() | st.integers(-5, 300) | st.sampled_from(["", "x", "gs://b/k"])
BODIES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)
VERTEX = "/v1/projects/p/locations/us-central1"
MODEL = "gemini-embedding-001"
PATHS = [
    f"/v1/models/{MODEL}:asyncBatchEmbedContent",
    f"/v1/models/{MODEL}:embedContent",
    f"/v1/models/{MODEL}:batchEmbedContents",
    f"/v1/models/{MODEL}:countTokens",
    "/upload/v1/files",
    "/upload/v1/files?uploadType=multipart",
    f"{VERTEX}/batchPredictionJobs",
    f"{VERTEX}/publishers/google/models/text-embedding-005:predict",
    f"{VERTEX}/publishers/google/models/{MODEL}:batchEmbedContents",
    f"{VERTEX}/publishers/google/models/{MODEL}:countTokens",
]


@pytest.fixture(scope="module")
def sound():
    with FakeCloud(job_duration_s=0.0) as cloud:
        yield cloud


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_odd_bodies_are_refused_not_crashed_on(sound, path, body):
    """Every answer is 200 or a 4xx in Google's shape."""
    connection = http.client.HTTPConnection(sound.url.removeprefix("http://"), timeout=20)
    headers = {
        "Authorization": f"Bearer {sound.access_token}",
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Command": "start",
    }
    connection.request("POST", path, orjson.dumps(body), headers)
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    assert answer.status == 200 or orjson.loads(told)["error"]["code"] == answer.status < 500


def test_a_failure_of_the_cloud_is_raised_at_its_end():
    """No test passes over a broken fake."""
    with pytest.raises(CloudCrashedError, match="odd"), FakeCloud() as cloud:
        cloud._server.crashes.append("odd")


def test_nothing_is_left_behind():
    """Threads end and the folder goes."""
    before = set(threading.enumerate())
    with FakeCloud() as cloud:
        folder = cloud.folder
        connection = http.client.HTTPConnection(cloud.url.removeprefix("http://"), timeout=20)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 403
    connection.close()
    assert not folder.exists()
    assert set(threading.enumerate()) <= before
