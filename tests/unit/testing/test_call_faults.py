"""Faults of calls: what comes back, and whether the call took effect."""

import http.client
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import pytest

from embatch.testing.cloud import Fault

MODELS = "/v1beta/models"
BROKEN = (ConnectionResetError, http.client.RemoteDisconnected, BrokenPipeError)


def details(reply, kind):
    return [d for d in reply.error.get("details", ()) if d["@type"].endswith(kind)]


def test_rate_limited_without_hints_has_help_only(cloud, wire):
    """The 429 of batch calls says nothing of when to come back."""
    cloud.add_fault(Fault("rate_limited", {"route": "models.list"}, times=1))
    reply = wire.get(MODELS)
    assert (reply.status, reply.error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert [d["@type"].rsplit(".", 1)[-1] for d in reply.error["details"]] == ["Help"]
    assert "retry-after" not in reply.headers
    assert wire.get(MODELS).status == 200


@pytest.mark.parametrize(
    ("hints", "quota", "delay"),
    [
        ("minute", "PerMinute", "33.4s"),
        ("day", "PerDay", None),
        ("misleading", "PerDay", "33.4s"),
    ],
)
def test_rate_limited_with_hints(cloud, wire, hints, quota, delay):
    """QuotaFailure names the period; RetryInfo is there, absent, or misleading."""
    cloud.add_fault(Fault("rate_limited", args={"hints": hints, "retry_after_s": 5}))
    reply = wire.get(MODELS)
    (failure,) = details(reply, "QuotaFailure")
    assert quota in failure["violations"][0]["quotaId"]
    assert [d["retryDelay"] for d in details(reply, "RetryInfo")] == ([delay] if delay else [])
    assert reply.headers["retry-after"] == "5"


def test_retry_after_as_a_date(cloud, wire):
    """The header's other form: a time of day, by the clock that the Date header tells."""
    cloud.add_fault(Fault("rate_limited", args={"retry_after_s": 60, "as_date": True}))
    headers = wire.get(MODELS).headers
    until, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
    assert 58 <= (until - now).total_seconds() <= 61


@pytest.mark.parametrize(
    ("code", "status"),
    [(500, "INTERNAL"), (502, "UNAVAILABLE"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED")],
)
def test_server_errors(cloud, wire, code, status):
    """Each 5xx has its status word."""
    cloud.add_fault(Fault("server_error", args={"code": code}, times=1))
    reply = wire.get(MODELS)
    assert (reply.status, reply.error["code"], reply.error["status"]) == (code, code, status)


def test_server_error_as_a_proxys_page(cloud, wire):
    """What stands before the service answers HTML."""
    cloud.add_fault(Fault("server_error", args={"code": 502, "html": True}))
    reply = wire.get(MODELS)
    assert reply.status == 502
    assert reply.headers["content-type"].startswith("text/html")


def test_server_error_after_the_create_took_effect(cloud, wire):
    """A 503 may hide a job that exists."""
    cloud.add_fault(Fault("server_error", {"display_name": "x"}, args={"after": True}))
    assert wire.create(["a"], name="x").status == 503
    assert cloud.bill().jobs_created == {"x": 1}


def test_server_error_before_the_create_makes_no_job(cloud, wire):
    """Without `after` nothing happened."""
    cloud.add_fault(Fault("server_error", {"route": "batches.create"}))
    assert wire.create(["a"], name="x").status == 503
    assert cloud.bill().jobs_created == {}


def test_unauthenticated(cloud, wire):
    """401 as for a token that ran out."""
    cloud.add_fault(Fault("unauthenticated", times=1))
    reply = wire.get(MODELS)
    assert (reply.status, reply.error["status"]) == (401, "UNAUTHENTICATED")


def test_delay_makes_a_client_time_out(cloud, wire):
    """The answer comes later than a client waits; with `after` the job exists then."""
    cloud.add_fault(
        Fault("delay", {"route": "batches.create"}, args={"seconds": 30, "after": True})
    )
    file_name = wire.upload(b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n')
    connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc, timeout=0.3)
    body = b'{"batch":{"displayName":"x","inputConfig":{"fileName":"%s"}}}' % file_name.encode()
    path = f"{MODELS}/gemini-embedding-001:asyncBatchEmbedContent"
    connection.request("POST", path, body, {"x-goog-api-key": cloud.api_key})
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert cloud.bill().jobs_created == {"x": 1}


def test_delay_delays(cloud, wire):
    """The answer comes, late."""
    cloud.add_fault(Fault("delay", args={"seconds": 0.2}, times=1))
    began = time.monotonic()
    assert wire.get(MODELS).status == 200
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(("kind", "jobs"), [("reset_before", {}), ("reset_after", {"x": 1})])
def test_resets_around_a_create(cloud, wire, kind, jobs):
    """The connection is reset; only after the effect does a job exist."""
    cloud.add_fault(Fault(kind, {"route": "batches.create"}))
    with pytest.raises(BROKEN):
        wire.create(["a"], name="x")
    assert cloud.bill().jobs_created == jobs


def test_reset_before_is_a_reset_not_a_goodbye(cloud, wire):
    """The client's socket sees ECONNRESET."""
    cloud.add_fault(Fault("reset_before"))
    with pytest.raises(ConnectionResetError):
        wire.get(MODELS)


def test_trickle_is_slow_and_whole(cloud, wire):
    """A slow answer is complete in the end."""
    whole = wire.get(MODELS).body
    cloud.add_fault(Fault("trickle", args={"bytes": 100, "pause_s": 0.01}))
    began = time.monotonic()
    assert wire.get(MODELS).body == whole
    assert time.monotonic() - began >= 0.01 * (len(whole) // 100)


@pytest.mark.parametrize("reset", [True, False])
def test_truncate_ends_a_download_early(cloud, wire, reset):
    """Fewer bytes come than Content-Length says."""
    operation = wire.finished(["a", "b"])
    cloud.add_fault(
        Fault("truncate", {"route": "files.download"}, 1, args={"at_byte": 100, "reset": reset})
    )
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as broken:
        wire.lines(operation)
    if isinstance(broken.value, http.client.IncompleteRead):
        assert len(broken.value.partial) == 100
    assert len(wire.lines(operation)) == 2


def test_fewer_vectors(cloud, wire):
    """An interactive answer may lack vectors, with status 200."""
    cloud.add_fault(Fault("fewer_vectors", args={"count": 2}))
    asked = {"model": f"models/{'gemini-embedding-001'}", "content": {"parts": [{"text": "x"}]}}
    reply = wire.post(
        f"{MODELS}/gemini-embedding-001:batchEmbedContents", {"requests": [asked] * 5}
    )
    assert len(reply.json["embeddings"]) == 3


def test_over_long_refused(cloud, wire):
    """A text over the limit is a 400 at once, and a row error in a batch; else it is cut."""
    long = "x" * 2048 * 4 + "y"
    path = f"{MODELS}/gemini-embedding-001:embedContent"
    body = {"content": {"parts": [{"text": long}]}}
    assert wire.post(path, body).status == 200
    cloud.add_fault(Fault("over_long_refused"))
    assert wire.post(path, body).status == 400
    rows = wire.results([long, "short"])
    assert [row.get("error", {}).get("code") for row in rows] == [3, None]
