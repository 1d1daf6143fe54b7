"""Faults of jobs, quotas and lists."""

import pytest

from embatch.testing.cloud import FakeCloud, Fault


def get(wire, name):
    return wire.get(f"/v1beta/{name}").json


def state(wire, name):
    return get(wire, name)["metadata"]["state"].removeprefix("BATCH_STATE_")


def listed(wire, **query):
    return wire.get("/v1beta/batches", **query).json


# Quotas


def test_token_ceiling_is_hidden_and_frees_with_the_jobs(cloud, wire):
    """Enqueued tokens over the ceiling are a 429 without hints; a finished job frees its own."""
    cloud.add_fault(Fault("token_ceiling", {"api": "gemini"}, args={"tokens": 10}))
    first = wire.create(["x" * 32]).json["name"]
    refused = wire.create(["x" * 12])
    assert refused.status == 429
    assert [d["@type"].rsplit(".", 1)[-1] for d in refused.error["details"]] == ["Help"]
    assert wire.create(["x" * 8]).status == 200
    cloud.finish(first)
    assert wire.create(["x" * 12]).status == 200


def test_token_ceiling_moves_with_time(cloud, wire):
    """Steps raise and lower the ceiling by the clock."""
    steps = [[100, 1000], [200, 1]]
    cloud.add_fault(Fault("token_ceiling", args={"tokens": 1, "steps": steps}))
    seen = []
    for _ in range(3):
        seen.append(wire.create(["x" * 32]).status)
        cloud.advance(100)
    assert seen == [429, 200, 429]


def test_job_ceiling(cloud, wire):
    """No more unfinished jobs than that."""
    cloud.add_fault(Fault("job_ceiling", args={"jobs": 1, "hints": "minute"}))
    name = wire.create(["a"]).json["name"]
    assert wire.create(["a"]).status == 429
    cloud.finish(name)
    assert wire.create(["a"]).status == 200


# Lists


def test_listing_delay(cloud, wire):
    """A job is known by name before it is listed."""
    cloud.add_fault(Fault("listing_delay", args={"seconds": 60}))
    name = wire.create(["a"]).json["name"]
    assert get(wire, name)["name"] == name
    assert listed(wire) == {}
    cloud.advance(60)
    assert [entry["name"] for entry in listed(wire)["operations"]] == [name]


def walk(wire):
    pages, token = [], None
    while True:
        page = listed(wire, **({"pageToken": token} if token else {}))
        pages.append([entry["name"] for entry in page.get("operations", ())])
        token = page.get("nextPageToken")
        if token is None:
            return pages


def test_small_pages(cloud, wire):
    """The walk over small pages finds each job once, newest first."""
    names = [wire.create(["a"]).json["name"] for _ in range(5)]
    cloud.add_fault(Fault("small_pages", args={"size": 2}))
    pages = walk(wire)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == names[::-1]


@pytest.mark.parametrize(("first_only", "sizes"), [(False, [0, 2, 0, 1]), (True, [0, 2, 1])])
def test_empty_pages(cloud, wire, first_only, sizes):
    """An empty page with a token is not the end."""
    for _ in range(3):
        wire.create(["a"])
    cloud.add_fault(Fault("small_pages", args={"size": 2}))
    cloud.add_fault(Fault("empty_pages", args={"first_only": first_only}))
    assert [len(page) for page in walk(wire)] == sizes


def test_stale_stats(cloud, wire):
    """A listed job may be SUCCEEDED with all rows pending; get tells the truth."""
    name = wire.finished(["a", "b"])["name"]
    cloud.add_fault(Fault("stale_stats"))
    (entry,) = listed(wire)["operations"]
    assert entry["metadata"]["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}
    assert get(wire, name)["metadata"]["batchStats"]["successfulRequestCount"] == "2"


def test_foreign_jobs(cloud, wire):
    """The list mixes embedding jobs with others."""
    wire.create(["a"])
    cloud.add_fault(Fault("foreign_jobs", args={"count": 2}))
    cloud.add_fault(Fault("small_pages", args={"size": 1}))
    assert [len(page) for page in walk(wire)] == [1, 1, 1]


def test_get_can_fail_while_list_works(cloud, wire):
    """503 on one route leaves the other alone."""
    name = wire.create(["a"]).json["name"]
    cloud.add_fault(Fault("server_error", {"route": "batches.get"}))
    assert wire.get(f"/v1beta/{name}").status == 503
    assert len(listed(wire)["operations"]) == 1


# Ends


def test_job_duration(cloud, wire):
    """The job takes as long as asked, a row and all."""
    cloud.add_fault(Fault("job_duration", args={"seconds": 100, "row_s": 10}))
    name = wire.create(["a", "b"]).json["name"]
    assert state(wire, name) == "PENDING"
    cloud.advance(60)
    assert state(wire, name) == "RUNNING"
    assert "done" not in get(wire, name)
    cloud.advance(60)
    assert state(wire, name) == "SUCCEEDED"


@pytest.mark.parametrize("word", ["PENDING", "RUNNING"])
def test_job_stuck_until_the_fault_is_lifted(cloud, wire, until, word):
    """A stuck job stays as it is, for hours, and goes on once released."""
    cloud.add_fault(Fault("job_stuck", {"display_name": "s*"}, args={"state": word}))
    name = wire.create(["a"], name="slow").json["name"]
    cloud.advance(3600)
    assert state(wire, name) == word
    cloud.clear_faults("job_stuck")
    until(lambda: state(wire, name) == "SUCCEEDED")


def test_stuck_jobs_expire_after_48_hours(cloud, wire):
    """EXPIRED has no results."""
    cloud.add_fault(Fault("job_stuck"))
    name = wire.create(["a"]).json["name"]
    cloud.advance(48 * 3600)
    operation = get(wire, name)
    assert operation["metadata"]["state"] == "BATCH_STATE_EXPIRED"
    assert operation["done"] is True
    assert "response" not in operation


def test_job_expired(cloud, wire):
    """EXPIRED on request."""
    cloud.add_fault(Fault("job_expired"))
    assert wire.finished(["a"])["metadata"]["state"] == "BATCH_STATE_EXPIRED"
    assert cloud.bill().rows == 0


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.5, 2)])
def test_job_failed_by_quota_at_run_time(cloud, wire, share, rows):
    """FAILED with code 8, with or without part of its results."""
    cloud.add_fault(Fault("job_failed", args={"share": share}))
    operation = wire.finished(["a", "b", "c", "d"])
    assert operation["metadata"]["state"] == "BATCH_STATE_FAILED"
    assert operation["error"]["code"] == 8
    assert cloud.bill().rows == rows
    assert (len(wire.lines(operation)) if rows else 0) == rows


def test_job_cancelled_by_the_service(cloud, wire):
    """CANCELLED although nobody asked."""
    cloud.add_fault(Fault("job_cancelled"))
    operation = wire.finished(["a"])
    assert operation["metadata"]["state"] == "BATCH_STATE_CANCELLED"


def test_input_lost(cloud, wire):
    """FAILED, because the input file is gone."""
    cloud.add_fault(Fault("input_lost"))
    operation = wire.finished(["a"])
    assert operation["error"]["code"] == 5


@pytest.mark.parametrize(
    ("kind", "args", "word"),
    [
        ("state_word", {}, "BATCH_STATE_PAUSED"),
        ("state_word", {"when": "running"}, "BATCH_STATE_SUCCEEDED"),
        ("state_prefix", {}, "JOB_STATE_SUCCEEDED"),
        ("state_prefix", {"prefix": ""}, "SUCCEEDED"),
    ],
)
def test_spellings_of_the_state(cloud, wire, kind, args, word):
    """The word may be unknown, differently prefixed, or bare; done tells the end."""
    cloud.add_fault(Fault(kind, args=args))
    operation = wire.finished(["a"])
    assert operation["metadata"]["state"] == word
    assert operation["done"] is True


def test_state_word_while_running(cloud, wire):
    """An unknown word is not the end."""
    cloud.add_fault(Fault("state_word", args={"word": "BATCH_STATE_PAUSED", "when": "running"}))
    operation = get(wire, wire.create(["a"]).json["name"])
    assert operation["metadata"]["state"] == "BATCH_STATE_PAUSED"
    assert "done" not in operation


def cancelled(cloud, wire, *faults):
    for fault in faults:
        cloud.add_fault(fault)
    cloud.add_fault(Fault("job_duration", args={"seconds": 100}))
    name = wire.create(["a", "b", "c", "d"]).json["name"]
    cloud.advance(50)
    assert wire.post(f"/v1beta/{name}:cancel").json == {}
    cloud.advance(0)
    return get(wire, name)


def test_cancel_without_a_fault(cloud, wire):
    """CANCELLED, all rows pending, nothing charged."""
    operation = cancelled(cloud, wire)
    assert operation["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert operation["error"]["code"] == 1
    stats = operation["metadata"]["batchStats"]
    assert stats == {"requestCount": "4", "pendingRequestCount": "4"}
    assert cloud.bill().rows == 0


def test_cancel_late_ends_succeeded_with_code_1_rows(cloud, wire):
    """A job cancelled late is SUCCEEDED; the rows not served bear code 1 and no message."""
    operation = cancelled(cloud, wire, Fault("cancel_late"))
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"]["failedRequestCount"] == "2"
    lines = wire.lines(operation)
    assert [b'"error":{"code":1}' in line for line in lines] == [False, False, True, True]
    assert cloud.bill().rows == 2


def test_cancel_partial_holds_results(cloud, wire):
    """CANCELLED can carry results."""
    operation = cancelled(cloud, wire, Fault("cancel_partial"))
    assert operation["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert len(wire.lines(operation)) == 2


def test_cancel_ignored(cloud, wire):
    """A cancelled job may complete."""
    operation = cancelled(cloud, wire, Fault("cancel_ignored"))
    assert "done" not in operation
    cloud.advance(50)
    assert state(wire, operation["name"]) == "SUCCEEDED"


@pytest.mark.parametrize("place", ["metadata", "response"])
def test_output_in_one_place(cloud, wire, place):
    """Results may stand in one of the two places only."""
    cloud.add_fault(Fault("output_in", args={"place": place}))
    operation = wire.finished(["a"])
    assert ("response" in operation) == (place == "response")
    assert ("output" in operation["metadata"]) == (place == "metadata")


def test_stats_missing(cloud, wire):
    """No batchStats at all."""
    cloud.add_fault(Fault("stats_missing"))
    assert "batchStats" not in wire.finished(["a"])["metadata"]


def test_automatic_clock_finishes_by_itself(wire, until):
    """Without a manual clock a job ends after its duration of real time."""
    with FakeCloud(job_duration_s=0.05) as cloud:
        assert type(wire)(cloud).create(["a"], inline=True).status == 200
        until(lambda: cloud.jobs()[0]["state"] == "SUCCEEDED")
