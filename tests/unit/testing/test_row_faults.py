"""Faults of result rows."""

import math

import numpy as np
import orjson
import pytest

from embatch.testing.cloud import FakeCloud, Fault, expected_vector

TEXTS = [f"text {n}" for n in range(8)]


def vector(row):
    return np.array(row["response"]["embedding"]["values"], dtype=np.float32)


def right(row, texts=TEXTS, dims=128):
    at = int(row["key"].removeprefix("k"))
    return np.array_equal(vector(row), expected_vector(texts[at], dims=dims))


def keys(rows):
    return [row.get("key") for row in rows]


def test_without_a_fault_all_is_right(wire):
    """Rows come in order, under their keys, with their vectors and token counts."""
    rows = wire.results(TEXTS)
    assert keys(rows) == [f"k{n}" for n in range(8)]
    assert all(right(row) for row in rows)
    assert {row["response"]["usageMetadata"]["promptTokenCount"] for row in rows} == {2}


def test_shuffle(cloud, wire):
    """Another order, but each vector still under its key."""
    cloud.add_fault(Fault("shuffle"))
    rows = wire.results(TEXTS)
    assert sorted(keys(rows)) == [f"k{n}" for n in range(8)]
    assert keys(rows) != [f"k{n}" for n in range(8)]
    assert all(right(row) for row in rows)


@pytest.mark.parametrize("args", [{"fraction": 0.25}, {"count": 2}, {"indices": [1, 6]}, {}])
def test_swap_values(cloud, wire, args):
    """Two rows bear one another's values, and nothing tells so but the values."""
    cloud.add_fault(Fault("swap_values", args=args))
    rows = wire.results(TEXTS)
    assert keys(rows) == [f"k{n}" for n in range(8)]
    assert [right(row) for row in rows].count(False) == 2


def test_swap_values_across_blocks(cloud, wire):
    """Rows far apart are swapped too."""
    texts = [f"t{n}" for n in range(1200)]
    cloud.add_fault(Fault("swap_values", args={"indices": [3, 1100]}))
    rows = wire.results(texts)
    wrong = [row["key"] for row in rows if not right(row, texts)]
    assert wrong == ["k3", "k1100"]
    assert np.array_equal(vector(rows[3]), expected_vector("t1100", dims=128))


@pytest.mark.parametrize(
    ("args", "missing"),
    [({"indices": [2, 5]}, {"k2", "k5"}), ({"marker": "text 3"}, {"k3"}), ({"count": 3}, None)],
)
def test_missing_rows(cloud, wire, args, missing):
    """The chosen rows are simply not there."""
    cloud.add_fault(Fault("missing_rows", args=args))
    lost = {f"k{n}" for n in range(8)} - set(keys(wire.results(TEXTS)))
    assert lost == missing if missing else len(lost) == 3


@pytest.mark.parametrize("identical", [True, False])
def test_doubled_rows(cloud, wire, identical):
    """A key comes twice, with one vector or with two."""
    cloud.add_fault(Fault("doubled_rows", args={"indices": [4], "identical": identical}))
    rows = [row for row in wire.results(TEXTS) if row["key"] == "k4"]
    assert len(rows) == 2
    assert np.array_equal(vector(rows[0]), vector(rows[1])) is identical


def test_unknown_rows(cloud, wire):
    """Keys that nobody sent, with vectors that look right."""
    cloud.add_fault(Fault("unknown_rows", args={"count": 2}))
    rows = wire.results(TEXTS)
    assert keys(rows)[8:] == ["unknown-0", "unknown-1"]
    assert vector(rows[-1]).shape == (128,)


def test_foreign_rows(cloud, wire):
    """Keys of another job of the same project."""
    other = [
        orjson.dumps({"key": key, "request": {"content": {"parts": [{"text": "o"}]}}})
        for key in ("f0", "f1")
    ]
    wire.create(rows=b"\n".join(other), name="other")
    cloud.add_fault(Fault("foreign_rows", {"display_name": "job"}))
    assert keys(wire.results(TEXTS))[8:] == ["f0"]


def failed(rows):
    return {row["key"]: row["error"] for row in rows if "error" in row}


def test_row_error_by_marker_is_permanent(cloud, wire):
    """A row with the marker fails in every job."""
    cloud.add_fault(Fault("row_error", args={"marker": "text 2", "code": 3, "message": "bad text"}))
    for _ in range(2):
        assert failed(wire.results(TEXTS)) == {"k2": {"code": 3, "message": "bad text"}}


def test_row_error_transient(cloud, wire):
    """A transient row fails in its first jobs, then it does not."""
    cloud.add_fault(Fault("row_error", args={"marker": "text 2", "transient": True, "fails": 2}))
    assert [len(failed(wire.results(TEXTS))) for _ in range(3)] == [1, 1, 0]


def test_row_error_by_lot(cloud, wire):
    """Permanent lots fall on the same texts again; transient ones are drawn anew."""
    texts = [f"t{n}" for n in range(200)]
    id_ = cloud.add_fault(Fault("row_error", args={"chance": 0.2}))
    first, second = (set(failed(wire.results(texts))) for _ in range(2))
    assert first == second
    assert 15 < len(first) < 70
    cloud.clear_faults(id_)
    cloud.add_fault(Fault("row_error", args={"chance": 0.2, "transient": True}))
    first, second = (set(failed(wire.results(texts))) for _ in range(2))
    assert first != second


def test_row_error_without_a_message(cloud, wire):
    """Code only."""
    cloud.add_fault(Fault("row_error", args={"indices": [0], "code": 1, "message": None}))
    assert failed(wire.results(TEXTS)) == {"k0": {"code": 1}}


def test_row_error_with_details(cloud, wire):
    """Objects in details, which break the official Python client."""
    cloud.add_fault(Fault("row_error", args={"indices": [0], "details": True}))
    assert isinstance(failed(wire.results(TEXTS))["k0"]["details"][0], dict)


def test_all_rows_failed_is_succeeded(cloud, wire):
    """SUCCEEDED with nothing but errors, and nothing to pay."""
    cloud.add_fault(Fault("row_error"))
    operation = wire.finished(TEXTS)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"] == {"requestCount": "8", "failedRequestCount": "8"}
    assert cloud.bill().rows == 0


@pytest.mark.parametrize(
    ("shape", "response"),
    [
        ("null", {"embedding": None}),
        ("empty", {"embedding": {"values": []}}),
        ("absent", {}),
        ("no_response", None),
    ],
)
def test_null_vector(cloud, wire, shape, response):
    """A row may say it went well, and have no vector."""
    cloud.add_fault(Fault("null_vector", args={"indices": [1], "shape": shape}))
    answer = wire.results(TEXTS)[1]["response"]
    if answer is not None:
        del answer["usageMetadata"]
    assert answer == response


@pytest.mark.parametrize(
    ("kind", "args", "word"),
    [
        ("null_value", {}, b"null"),
        ("nan", {}, b'"NaN"'),
        ("nan", {"bare": True}, b",NaN,"),
        ("overflow", {}, b"1e400"),
    ],
)
def test_values_that_are_no_numbers(cloud, wire, kind, args, word):
    """One value of the chosen row is null, NaN or too large."""
    cloud.add_fault(Fault(kind, args={"indices": [3], **args}))
    lines = wire.lines(wire.finished(TEXTS))
    assert [word in line for line in lines] == [n == 3 for n in range(8)]
    assert lines[3].count(b",") == lines[1].count(b",")


@pytest.mark.parametrize(("dims", "length"), [(None, 127), (64, 64), (200, 200)])
def test_wrong_dims(cloud, wire, dims, length):
    """A vector of another length."""
    cloud.add_fault(Fault("wrong_dims", args={"indices": [3], "dims": dims}))
    assert [len(vector(row)) for row in wire.results(TEXTS)][2:5] == [128, length, 128]


def test_zero_vector(cloud, wire):
    """A vector without a direction."""
    cloud.add_fault(Fault("zero_vector", args={"indices": [3]}))
    rows = wire.results(TEXTS)
    assert math.isclose(np.linalg.norm(vector(rows[3])), 0.0)
    assert len(vector(rows[3])) == 128
    assert right(rows[2])


def test_usage_missing(cloud, wire):
    """No token counts."""
    cloud.add_fault(Fault("usage_missing"))
    assert all("usageMetadata" not in row["response"] for row in wire.results(TEXTS))


def test_dims_ignored(cloud, wire):
    """The full vector comes; its prefix is what was asked."""
    cloud.add_fault(Fault("dims_ignored"))
    rows = wire.results(TEXTS)
    assert len(vector(rows[0])) == 3072
    assert np.array_equal(vector(rows[0])[:128], expected_vector(TEXTS[0], dims=128))


@pytest.mark.parametrize("inline", [False, True])
def test_metadata_missing(cloud, wire, inline):
    """Neither key nor metadata is echoed."""
    cloud.add_fault(Fault("metadata_missing"))
    operation = wire.finished(TEXTS, inline=inline)
    if inline:
        rows = operation["response"]["inlinedResponses"]["inlinedResponses"]
    else:
        rows = [orjson.loads(line) for line in wire.lines(operation)]
    assert {tuple(row) for row in rows} == {("response",)}


def test_broken_line(cloud, wire):
    """A line ends in its middle."""
    cloud.add_fault(Fault("broken_line", args={"indices": [3]}))
    lines = wire.lines(wire.finished(TEXTS))
    assert len(lines) == 8
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(lines[3])


def test_faults_strike_inline_results_too(cloud, wire):
    """Order and errors of inline results can be spoiled; the document stays JSON."""
    cloud.add_fault(Fault("shuffle"))
    cloud.add_fault(Fault("row_error", args={"indices": [0]}))
    cloud.add_fault(Fault("missing_rows", args={"indices": [7]}))
    operation = wire.finished(TEXTS, inline=True)
    rows = operation["response"]["inlinedResponses"]["inlinedResponses"]
    assert rows == operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    seen = [row["metadata"]["key"] for row in rows]
    assert sorted(seen) == [f"k{n}" for n in range(7)]
    assert seen != sorted(seen)
    assert [row["metadata"]["key"] for row in rows if "error" in row] == ["k0"]


def test_the_same_seed_spoils_the_same_rows(wire, cloud):
    """Chosen rows depend on the seed and the job, not on chance."""
    cloud.add_fault(Fault("missing_rows", args={"count": 3}, id="m"))
    first = keys(wire.results(TEXTS))
    with FakeCloud(manual_clock=True, seed=7) as again:
        again.add_fault(Fault("missing_rows", args={"count": 3}, id="m"))
        assert keys(type(wire)(again).results(TEXTS)) == first
