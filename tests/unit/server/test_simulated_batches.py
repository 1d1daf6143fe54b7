"""Faults of batches and of their rows, through a real server."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest

from embatch.server.details import BatchDetails
from embatch.server.outputs import OUTPUT_FILE
from embatch.server.simulation.presets import PRESETS
from embatch.server.simulation.profile import parse_profile
from embatch.server.simulation.weather import BadWeather
from embatch.testing import FakeEngine
from embatch.testing.cloud.faults import Fault

from .conftest import DIMS, Server, Start, jsonl, keyed, rows
from .test_simulated_calls import CREATE, Day, day

__all__ = ["day"]

TEXTS = [f"t{n}" for n in range(100)]
TRUTH = FakeEngine(DIMS).expected(TEXTS)


def lines(server: Server, name: str) -> list[bytes]:
    """The lines of a batch's result file."""
    server.ended(name)
    path = f"/v1/files/batch-{name.removeprefix('batches/')}:download?alt=media"
    answer = server.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.content.splitlines()


def from_file(server: Server, texts: list[str] = TEXTS, **more: Any) -> str:
    """A batch over a file of keyed rows."""
    asked = {"displayName": more.pop("displayName", "")}
    file = server.upload(keyed(*texts, **more))
    return server.create({"inputConfig": {"fileName": file}, **asked})


def answered(server: Server, name: str) -> list[Any]:
    return [orjson.loads(line) for line in lines(server, name)]


def values(row: Any) -> list[float]:
    found: list[float] = row["response"]["embedding"]["values"]
    return found


def right(row: Any) -> bool:
    """The row bears the vector of its key's text, to the bit."""
    vector = np.array(values(row), dtype=np.float32)
    return vector.tobytes() == TRUTH[int(row["key"][1:])].tobytes()


def test_rows_are_shuffled_under_their_own_keys(day: Day) -> None:
    """Every row once, in another order, with its own vector."""
    server = day(Fault("shuffle"))
    got = answered(server, from_file(server))
    assert [row["key"] for row in got] != [f"k{n}" for n in range(100)]
    assert sorted(row["key"] for row in got) == sorted(f"k{n}" for n in range(100))
    assert all(right(row) for row in got)


def test_a_batch_of_many_blocks_is_shuffled_whole(day: Day) -> None:
    """Rows of one record batch end far from each other; failed ones stay failed."""
    server = day(Fault("shuffle"))
    texts = [f"t{n}" if n % 500 else "" for n in range(5000)]
    truth = FakeEngine(DIMS).expected(texts)
    got = answered(server, from_file(server, texts))
    at = [int(row["key"][1:]) for row in got]
    assert sorted(at) == list(range(5000))
    assert max(abs(a - b) for a, b in enumerate(at)) > 2500
    for row, index in zip(got, at, strict=True):
        if texts[index]:
            assert np.array(values(row), dtype=np.float32).tobytes() == truth[index].tobytes()
        else:
            assert row["error"] == {"code": 3, "message": "content is empty"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("missing_rows", args={"fraction": 0.1}), {0: 10, 1: 90}),
        (Fault("doubled_rows", args={"fraction": 0.1}), {1: 90, 2: 10}),
        (Fault("missing_rows", args={"indices": [0, 99]}), {0: 2, 1: 98}),
        (Fault("doubled_rows", args={"marker": "t7"}), {1: 89, 2: 11}),
    ],
)
def test_rows_are_missing_or_come_twice(day: Day, fault: Fault, expected: dict[int, int]) -> None:
    """As many as asked for; the others are whole."""
    server = day(fault)
    got = answered(server, from_file(server))
    counts = Counter(row["key"] for row in got)
    assert Counter(counts[f"k{n}"] for n in range(100)) == expected
    assert all(right(row) for row in got)


def test_a_doubled_row_may_have_two_vectors(day: Day) -> None:
    """One is right, the other is not."""
    server = day(Fault("doubled_rows", args={"indices": [5], "identical": False}))
    twins = [row for row in answered(server, from_file(server)) if row["key"] == "k5"]
    assert [right(row) for row in twins] == [True, False]


def test_values_stand_under_one_anothers_keys(day: Day) -> None:
    """Of the chosen rows only, each of which has another's."""
    server = day(Fault("swap_values", args={"count": 4}))
    wrong = [row for row in answered(server, from_file(server)) if not right(row)]
    assert len(wrong) == 4
    swapped = {np.array(values(row), dtype=np.float32).tobytes() for row in wrong}
    assert swapped == {TRUTH[int(row["key"][1:])].tobytes() for row in wrong}


def test_rows_that_nobody_sent(day: Day) -> None:
    """Under unknown keys, and under those of another batch."""
    server = day(Fault("unknown_rows", {"display_name": "x"}, args={"count": 2}),
                 Fault("foreign_rows", {"display_name": "x"}))  # fmt: skip
    other = server.upload(jsonl({"key": "other-0", **rows("o")[0]}))
    server.ended(server.create({"inputConfig": {"fileName": other}}))
    got = answered(server, from_file(server, displayName="x"))
    assert [row["key"] for row in got[100:]] == ["unknown-0", "unknown-1", "other-0"]
    assert all(len(values(row)) == DIMS for row in got[100:])


def test_row_errors_are_permanent_or_pass(day: Day) -> None:
    """A transient one strikes the first batch that holds the text."""
    server = day(
        Fault("row_error", args={"indices": [3], "transient": True, "code": 14}),
        Fault("row_error", args={"marker": "t99", "code": 3, "message": None}),
    )
    first, second = (answered(server, from_file(server)) for _ in range(2))
    assert first[3]["error"] == {"code": 14, "message": "Internal error encountered."}
    assert right(second[3])
    assert first[99]["error"] == second[99]["error"] == {"code": 3}
    name = server.json("GET", "/v1/batches")["operations"][0]["name"]
    stats = server.json("GET", f"/v1/{name}")["metadata"]["batchStats"]
    assert (stats["successfulRequestCount"], stats["failedRequestCount"]) == ("99", "1")


@pytest.mark.parametrize(
    ("kind", "args", "odd"),
    [
        ("null_vector", {"shape": "null"}, b'"embedding":null'),
        ("null_vector", {"shape": "empty"}, b'"values":[]'),
        ("null_vector", {"shape": "no_response"}, b'"response":null'),
        ("null_value", {}, b",null,"),
        ("nan", {}, b'"NaN"'),
        ("nan", {"bare": True}, b",NaN,"),
        ("overflow", {}, b"1e400"),
        ("zero_vector", {}, b"[0,0,0,"),
    ],
)
def test_one_row_has_an_odd_value(day: Day, kind: str, args: dict[str, Any], odd: bytes) -> None:
    """The others do not."""
    server = day(Fault(kind, args={"indices": [7], **args}))
    got = lines(server, from_file(server))
    assert [n for n, line in enumerate(got) if odd in line] == [7]


def test_lines_keys_usage_and_lengths_may_be_wrong(day: Day) -> None:
    """Each by its own fault, for its own batch."""
    server = day(
        Fault("broken_line", {"display_name": "broken"}, args={"indices": [1]}),
        Fault("metadata_missing", {"display_name": "keyless"}),
        Fault("usage_missing", {"display_name": "usage"}),
        Fault("wrong_dims", {"display_name": "wrong"}, args={"indices": [1]}),
        Fault("dims_ignored", {"display_name": "full"}),
        Fault("over_long_refused", {"display_name": "long"}),
    )
    broken = lines(server, from_file(server, displayName="broken"))
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(broken[1])
    keyless = answered(server, from_file(server, displayName="keyless"))
    assert not any("key" in row for row in keyless)
    usage = answered(server, from_file(server, displayName="usage"))
    assert "usageMetadata" not in usage[0]["response"]
    wrong = answered(server, from_file(server, displayName="wrong"))
    assert [len(values(row)) for row in wrong[:3]] == [DIMS, DIMS - 1, DIMS]
    full = answered(server, from_file(server, displayName="full", outputDimensionality=4))
    assert all(right(row) for row in full)
    long = answered(server, from_file(server, ["a", "w " * 999], displayName="long"))
    assert "longer" in long[1]["error"]["message"]


def test_inline_results_are_spoiled_too(day: Day) -> None:
    """They are a list all the same, twice."""
    server = day(Fault("shuffle"), Fault("missing_rows", args={"count": 3}))
    listed = [{**row, "metadata": {"n": n}} for n, row in enumerate(rows(*TEXTS))]
    name = server.create({"inputConfig": {"requests": {"requests": listed}}})
    shown = server.ended(name)
    items = shown["response"]["inlinedResponses"]["inlinedResponses"]
    assert items == shown["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    order = [item["metadata"]["n"] for item in items]
    assert order != sorted(order)
    assert len(set(order)) == 97


@pytest.mark.parametrize(
    ("fault", "state", "error", "output"),
    [
        (Fault("job_expired"), "EXPIRED", 4, 0),
        (Fault("job_failed"), "FAILED", 8, 0),
        (Fault("job_failed", args={"share": 0.3, "code": 13}), "FAILED", 13, 30),
        (Fault("job_cancelled", args={"share": 0.5}), "CANCELLED", 1, 50),
        (Fault("input_lost"), "FAILED", 5, 0),
    ],
)
def test_batches_end_badly(day: Day, fault: Fault, state: str, error: int, output: int) -> None:
    """With the error of their end and the share of rows that was served."""
    server = day(fault)
    name = from_file(server)
    shown = ended(server, name)
    assert shown["metadata"]["state"] == f"BATCH_STATE_{state}"
    assert shown["error"]["code"] == error
    assert shown["metadata"]["batchStats"].get("successfulRequestCount", "0") == str(output)
    if output:
        got = answered(server, name)
        assert [row["key"] for row in got] == [f"k{n}" for n in range(output)]
        assert all(right(row) for row in got)
    else:
        assert "response" not in shown


def ended(server: Server, name: str) -> Any:
    deadline = time.monotonic() + 20
    while True:
        shown = server.json("GET", f"/v1/{name}")
        if shown.get("done"):
            return shown
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stuck_batch_stays_until_it_is_cancelled(day: Day) -> None:
    """RUNNING without any progress, though all is computed."""
    server = day(Fault("job_stuck"))
    name = from_file(server)
    while not server.service.store.page()[0].done:
        time.sleep(0.01)
    time.sleep(0.2)
    shown = server.json("GET", f"/v1/{name}")
    assert "done" not in shown
    assert shown["metadata"]["state"] == "BATCH_STATE_RUNNING"
    assert shown["metadata"]["batchStats"] == {"requestCount": "100", "pendingRequestCount": "100"}
    server.json("POST", f"/v1/{name}:cancel")
    assert ended(server, name)["metadata"]["state"] == "BATCH_STATE_CANCELLED"


@pytest.mark.parametrize(
    ("kind", "state", "rows_ok", "rows_cancelled"),
    [
        ("cancel_late", "SUCCEEDED", 50, 50),
        ("cancel_partial", "CANCELLED", 50, 0),
        ("cancel_ignored", "SUCCEEDED", 100, 0),
    ],
)
def test_a_cancel_comes_late_or_in_part_or_not(
    day: Day, kind: str, state: str, rows_ok: int, rows_cancelled: int
) -> None:
    """200 for the cancel in any case."""
    server = day(Fault(kind), Fault("job_duration", args={"seconds": 0.5}))
    name = from_file(server)
    server.json("POST", f"/v1/{name}:cancel")
    shown = ended(server, name)
    assert shown["metadata"]["state"] == f"BATCH_STATE_{state}"
    assert ("error" in shown) == (state == "CANCELLED")
    got = answered(server, name)
    assert sum("response" in row for row in got) == rows_ok
    assert [row["error"] for row in got if "error" in row] == [{"code": 1}] * rows_cancelled


def test_a_batch_takes_its_time(day: Day) -> None:
    """PENDING, then RUNNING with counts that grow, and no end before its time."""
    server = day(Fault("job_duration", args={"seconds": 0.5, "row_s": 0.005}))
    begun_at = time.monotonic()
    name = from_file(server)
    seen = []
    while not (shown := server.json("GET", f"/v1/{name}")).get("done"):
        stats = shown["metadata"]["batchStats"]
        done = int(stats.get("successfulRequestCount", 0))
        seen.append((shown["metadata"]["state"], done))
        time.sleep(0.02)
    assert time.monotonic() - begun_at >= 0.9
    assert [state for state, _ in seen] == sorted(state for state, _ in seen)
    assert len({state for state, _ in seen}) == 2
    counts = [done for _, done in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


def test_states_and_places_are_spelled_oddly(day: Day) -> None:
    """Another prefix, another word, no counts, results in one place only."""
    for fault, check in [
        (Fault("state_prefix"), lambda m: m["metadata"]["state"] == "JOB_STATE_SUCCEEDED"),
        (Fault("state_word"), lambda m: m["metadata"]["state"] == "BATCH_STATE_PAUSED"),
        (Fault("stats_missing"), lambda m: "batchStats" not in m["metadata"]),
        (Fault("output_in"), lambda m: "response" in m and "output" not in m["metadata"]),
        (Fault("output_in", args={"place": "metadata"}), lambda m: "response" not in m),
    ]:
        server = day(fault)
        assert check(ended(server, server.inline("a"))), fault
        server.stop()


def test_what_was_dealt_survives_a_restart(start: Start, tmp_path: Path) -> None:
    """A spoiled result is written once; a server without faults shows the same."""
    profile = parse_profile(["shuffle"], 3)
    server = start(weather=BadWeather(profile))
    name = from_file(server)
    first = lines(server, name)
    server.stop()
    for weather in (BadWeather(profile), None):
        server = start(weather=weather)
        assert lines(server, name) == first
        server.stop()
    assert len(list((tmp_path / "data").rglob(OUTPUT_FILE))) == 1


def test_an_output_that_a_kill_lost_is_spoiled_the_same_again(start: Start) -> None:
    """The plan is kept with the batch, so the second writing gives the same bytes."""
    profile = parse_profile(["shuffle", "missing-rows", "row-errors"], 5)
    server = start(weather=BadWeather(profile))
    name = from_file(server)
    first = lines(server, name)
    stored = server.service.store.find(name.removeprefix("batches/"))
    assert stored is not None
    (server.service.store.folder(stored.id) / OUTPUT_FILE).unlink()

    def unwritten(details: str) -> str:
        kept = orjson.loads(details)
        return orjson.dumps({**kept, "output": None}).decode()

    server.service.store.change_details(stored.id, unwritten)
    server.stop()
    server = start(weather=BadWeather(profile))
    assert lines(server, name) == first


def test_a_stuck_batch_is_stuck_after_a_restart(start: Start) -> None:
    """While the fault stands; a fair day lets it end."""
    server = start(weather=BadWeather(parse_profile(["stuck"], None)))
    name = server.inline("a")
    server.stop()
    server = start(weather=BadWeather(parse_profile(["stuck"], None)))
    time.sleep(0.5)
    assert "done" not in server.json("GET", f"/v1/{name}")
    server.stop()
    assert server_ends(start(), name)


def server_ends(server: Server, name: str) -> bool:
    return bool(ended(server, name)["done"])


def test_a_day_is_repeatable_by_its_seed(start: Start) -> None:
    """The same calls meet the same faults; another seed gives another day."""

    def lived(seed: int) -> tuple[list[int], list[list[str]]]:
        weather = BadWeather(parse_profile(["quota,missing-rows,shuffle"], seed))
        server = start(weather=weather)
        body = {"batch": {"inputConfig": {"fileName": server.upload(keyed(*TEXTS))}}}
        answers = [server.http.post(CREATE, json=body) for _ in range(12)]
        keys = [
            [row["key"] for row in answered(server, made.json()["name"])]
            for made in answers
            if made.status_code == 200
        ]
        server.stop()
        return [made.status_code for made in answers], keys

    first = lived(1)
    assert set(first[0]) == {200, 429}
    assert lived(1) == first
    assert lived(2)[1] != first[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_serves(start: Start, name: str) -> None:
    """Whatever it does to calls, the server itself never fails, and its batches get a plan."""
    server = start(weather=BadWeather(parse_profile([name], 0)))
    made = []
    for _ in range(30):
        try:
            answer = server.http.post(CREATE, json={"batch": {"inputConfig": {
                "requests": {"requests": rows(*TEXTS[:20])}}}})  # fmt: skip
        except httpx2.TransportError:
            continue
        made.append(answer.status_code)
        if len(made) >= 4:
            break
    assert 200 in made
    stored = server.service.store.page()
    assert stored
    assert all(BatchDetails.parse(one.details).plan for one in stored)
    assert server.json("GET", "/healthz")["status"] == "ok"
