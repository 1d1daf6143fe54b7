"""The bill, and what survives a restart."""

import hashlib
import threading

import numpy as np

from embatch.testing.cloud import Bill, FakeCloud, Fault, expected_vector
from embatch.testing.cloud.bill import Ledger
from embatch.testing.cloud.store import Store


def test_batch_rows_are_billed_by_text_and_job(wire, cloud):
    """Rows, tokens, and rows bought twice."""
    wire.finished(["a" * 8, "b", "b"], name="one")
    wire.finished(["b"], name="two")
    bill = cloud.bill()
    assert (bill.rows, bill.texts, bill.rows_billed_twice, bill.tokens) == (4, 2, 2, 5)
    assert [(job.display_name, job.rows, job.tokens) for job in bill.jobs] == [
        ("one", 3, 4),
        ("two", 1, 1),
    ]
    assert bill.jobs_created == {"one": 1, "two": 1}
    assert cloud.times_billed("b") == 3
    assert cloud.times_billed("unknown") == 0
    assert cloud.rows_by_digest()[hashlib.sha256(b"b").hexdigest()] == 3


def test_failed_rows_and_failed_jobs_cost_nothing(wire, cloud):
    """Only rows that got a vector are charged."""
    cloud.add_fault(Fault("row_error", {"display_name": "rows"}, args={"indices": [0]}))
    cloud.add_fault(Fault("job_failed", {"display_name": "job"}))
    wire.finished(["a", "b", ""], name="rows")
    wire.finished(["c"], name="job")
    assert cloud.bill().rows == 1
    assert cloud.times_billed("a") == 0


def test_rows_lost_on_the_way_are_billed(wire, cloud):
    """A missing result row was paid for; a doubled one once."""
    cloud.add_fault(Fault("missing_rows", args={"indices": [0]}))
    cloud.add_fault(Fault("doubled_rows", args={"indices": [1]}))
    wire.finished(["a", "b"])
    assert (cloud.times_billed("a"), cloud.times_billed("b")) == (1, 1)


def test_interactive_calls_are_billed_apart(wire, cloud):
    """At the full price, in their own columns."""
    body = {"content": {"parts": [{"text": "hello"}]}}
    wire.post("/v1/models/gemini-embedding-001:embedContent", body)
    bill = cloud.bill()
    assert (bill.interactive_rows, bill.interactive_tokens, bill.rows) == (1, 2, 0)


def test_requests_are_counted_by_route(wire, cloud):
    """Refused ones too."""
    wire.get("/v1/models")
    wire.send("GET", "/v1/models", key="wrong")
    bill = cloud.bill()
    assert (bill.requests["models.list"], bill.refused["models.list"]) == (2, 1)


def test_twin_jobs_show(wire, cloud):
    """Two jobs of one display name are counted."""
    wire.create(["a"], name="twin")
    wire.create(["a"], name="twin")
    assert cloud.bill().duplicate_jobs == {"twin": 2}
    assert Bill.from_json(cloud.bill().to_json()) == cloud.bill()


def test_state_goes_on_where_it_was(tmp_path, wire):
    """Jobs, files, clock and bill are there after a restart; a job under way ends."""
    with FakeCloud(state=tmp_path, manual_clock=True) as cloud:
        first = type(wire)(cloud)
        done = first.finished(["a"])["name"]
        cloud.advance(100)
        begun = first.create(["b"]).json["name"]
        moved = cloud.now()
    with FakeCloud(state=tmp_path, manual_clock=True) as cloud:
        again = type(wire)(cloud)
        assert cloud.now() == moved
        assert [job["name"] for job in cloud.jobs()] == [done, begun]
        cloud.advance(1)
        row = again.lines(again.get(f"/v1/{begun}").json)
        assert len(row) == 1
        assert cloud.bill().rows == 2


def test_a_prepared_result_file_is_served(tmp_path, wire, cloud):
    """A result file that was written beforehand stands as a finished batch."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"key":"k"}\n' * 3)
    name = cloud.prepare_batch(str(path), rows=3)
    operation = wire.get(f"/v1/{name}").json
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert wire.lines(operation) == [b'{"key":"k"}'] * 3


def test_settled_values_equal_the_interactive_ones(wire):
    """A batch row and an interactive call give one text one vector."""
    (row,) = wire.results(["same"], dims=256)
    values = np.array(row["response"]["embedding"]["values"], dtype=np.float32)
    assert np.array_equal(values, expected_vector("same", dims=256))


def test_charging_goes_on_where_it_was_cut_off(tmp_path):
    """A job charged half way before a kill is not charged twice for that half."""
    store = Store(tmp_path)
    ledger = Ledger(store)
    texts = [hashlib.sha256(b"%d" % n).digest() for n in range(5000)]
    digests = tmp_path / "digests"
    digests.write_bytes(b"".join(texts[:2000]))
    ledger.charge_batch("batches/x", "m", digests, threading.Event())
    digests.write_bytes(b"".join(texts))
    ledger.charge_batch("batches/x", "m", digests, threading.Event())
    assert (ledger.bill().rows, ledger.bill().rows_billed_twice) == (5000, 0)
    store.close()
