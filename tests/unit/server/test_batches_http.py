"""Batches over a real socket: made, polled, listed, changed, cancelled, deleted, read."""

import json
import os
import shutil
import time
from typing import Any

import numpy as np
import orjson
import pytest

from embatch.server.room import BALLAST_BYTES, BALLAST_FILE
from embatch.server.wire import VERSIONS
from embatch.service.store import ORPHAN_AGE_S, parse_batch
from embatch.testing import FakeEngine
from embatch.vectors import truncate

from .conftest import DIMS, MODEL, Server, Start, jsonl, keyed, rows

CREATE = f"/v1/models/{MODEL}:asyncBatchEmbedContent"


def vectors(items: list[Any]) -> np.ndarray:
    return np.array([item["response"]["embedding"]["values"] for item in items], np.float32)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_inline_batch_tells_its_results_twice(server: Server, version: str) -> None:
    """In metadata.output and in response, in order, with metadata as it was sent."""
    listed = rows("a", "b")
    listed[1]["metadata"] = {"id": 7, "big": 10**30, "deep": [None, {"x": 1.5}]}
    made = server.http.post(
        f"/{version}/models/{MODEL}:asyncBatchEmbedContent",
        content=orjson.dumps(
            {"batch": {"displayName": "d", "inputConfig": {"requests": {"requests": listed[:1]}}}}
        ),
    ).json()
    assert made["metadata"]["state"] == "BATCH_STATE_PENDING"
    assert "done" not in made
    assert "inputConfig" not in made["metadata"]
    assert len(made["name"].removeprefix("batches/")) == 36
    body = {"batch": {"input_config": {"requests": {"requests": listed}}}}
    name = server.http.post(CREATE, content=json.dumps(body)).json()["name"]
    server.ended(name)
    shown = json.loads(server.http.get(f"/{version}/{name}").content)
    items = shown["response"]["inlinedResponses"]["inlinedResponses"]
    assert shown["metadata"]["output"]["inlinedResponses"]["inlinedResponses"] == items
    assert shown["response"]["@type"].endswith("EmbedContentBatchOutput")
    assert [item.get("metadata") for item in items] == [None, listed[1]["metadata"]]
    assert [item["response"]["usageMetadata"] for item in items] == [{"promptTokenCount": 3}] * 2
    assert np.array_equal(vectors(items), server.engine.expected(["a", "b"]))
    assert shown["done"] is True
    stats = shown["metadata"]["batchStats"]
    assert stats == {"requestCount": "2", "successfulRequestCount": "2"}


def test_a_file_batch_gives_a_file(server: Server) -> None:
    """Keys come back, order stays, the name leads to the download by both paths."""
    texts = [f"text {n}" for n in range(3000)]
    file_name = server.upload(keyed(*texts) + b"\n\n")
    name = server.create({"displayName": "d", "inputConfig": {"file_name": file_name}})
    shown = server.ended(name)
    assert shown["metadata"]["inputConfig"] == {"fileName": file_name}
    result = f"files/batch-{name.removeprefix('batches/')}"
    assert shown["response"]["responsesFile"] == result
    assert shown["metadata"]["output"] == {"responsesFile": result}
    first = server.http.get(f"/v1/{result}:download?alt=media")
    assert first.headers["content-type"] == "application/jsonl"
    assert "attachment" in first.headers["content-disposition"]
    assert server.http.get(f"/download/v1beta/{result}:download?alt=media").content == first.content
    lines = [orjson.loads(line) for line in first.content.splitlines()]
    assert [line["key"] for line in lines] == [f"k{n}" for n in range(3000)]
    assert np.array_equal(vectors(lines), server.engine.expected(texts))
    about = server.json("GET", f"/v1/{result}")
    assert (about["sizeBytes"], about["source"]) == (str(len(first.content)), "GENERATED")


def test_rows_differ_in_dims_and_task(server: Server) -> None:
    """Each row gets what it asked for, cut as Matryoshka models are."""
    listed = [
        *rows("a", outputDimensionality=4),
        *rows("b", output_dimensionality="8", taskType="RETRIEVAL_QUERY"),
        *rows("c", taskType="CLUSTERING"),
    ]
    name = server.create({"inputConfig": {"requests": {"requests": listed}}})
    items = server.ended(name)["response"]["inlinedResponses"]["inlinedResponses"]
    full = server.engine.expected(["a", "q: b", "c"])
    for item, vector, dims in zip(items, full, (4, 8, DIMS), strict=True):
        values = np.array(item["response"]["embedding"]["values"], np.float32)
        assert np.allclose(values, truncate(vector, dims)[0], atol=1e-6)
        assert np.isclose(np.linalg.norm(values), 1.0)


@pytest.mark.parametrize("lengths", [(4, 8), (4, 4), (8, DIMS), (DIMS, DIMS)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    server: Server, lengths: tuple[int, ...]
) -> None:
    """Whatever the other rows of its batch ask for."""
    texts = [f"t{n}" for n in range(40)]
    asked = [
        row
        for n, text in enumerate(texts)
        for row in rows(text, outputDimensionality=lengths[n % len(lengths)])
    ]
    name = server.create({"inputConfig": {"requests": {"requests": asked}}})
    items = server.ended(name)["response"]["inlinedResponses"]["inlinedResponses"]
    for row, item in zip(asked, items, strict=True):
        alone = server.json("POST", f"/v1/models/{MODEL}:embedContent", row["request"])
        assert item["response"]["embedding"] == alone["embedding"]


def test_bad_rows_fail_alone(server: Server) -> None:
    """Empty texts with code 3, what the model refuses with 13; never with details."""
    file_name = server.upload(keyed("a", "", "POISON", "b", taskType="RETRIEVAL_QUERY"))
    name = server.create({"inputConfig": {"fileName": file_name}})
    shown = server.ended(name)
    assert shown["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    stats = shown["metadata"]["batchStats"]
    assert (stats["successfulRequestCount"], stats["failedRequestCount"]) == ("2", "2")
    result = shown["response"]["responsesFile"]
    lines = server.http.get(f"/v1/{result}:download?alt=media").content.splitlines()
    errors = [orjson.loads(line).get("error") for line in lines]
    assert errors[1] == {"code": 3, "message": "content is empty"}
    assert errors[2]["code"] == 13
    assert "POISON" not in errors[2]["message"]
    assert set(errors[2]) == {"code", "message"}
    assert errors[0] is errors[3] is None


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"content": {"parts": [{"text": "x"}]}}, "No request specified"),
        ({"request": {}}, "content is required"),
        ({"request": {"content": {"parts": [{"text": "x"}]}, "taskType": "NO"}}, "task_type"),
        (
            {"request": {"content": {"parts": [{"text": "x"}]}, "outputDimensionality": 99}},
            "output_dimensionality",
        ),
    ],
)
def test_one_bad_row_refuses_all(server: Server, bad: Any, words: str) -> None:
    """400 with the line's number, of files and of inline rows; nothing is made."""
    file_name = server.upload(jsonl({"request": {"content": "good"}}, bad))
    for config in (
        {"fileName": file_name},
        {"requests": {"requests": [*rows("good"), bad]}},
    ):
        error = server.error("POST", CREATE, {"batch": {"inputConfig": config}})
        assert error["status"] == "INVALID_ARGUMENT"
        assert error["message"].startswith("Error on line 2: ")
        assert words in error["message"]
    assert server.json("GET", "/v1/batches") == {}


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        ({}, 400),
        ({"inputConfig": {}}, 400),
        ({"inputConfig": {"requests": {"requests": []}}}, 400),
        ({"inputConfig": {"requests": {"requests": "x"}}}, 400),
        ({"inputConfig": {"fileName": "files/x", "requests": {"requests": []}}}, 400),
        ({"inputConfig": {"fileName": "files/unknown"}}, 403),
        ({"inputConfig": {"fileName": "../../etc/passwd"}}, 403),
        ({"inputConfig": {"fileName": 5}}, 400),
        ({"displayName": "x" * 513, "inputConfig": {"requests": {"requests": rows("a")}}}, 400),
        ({"displayName": 5, "inputConfig": {"requests": {"requests": rows("a")}}}, 400),
        ({"priority": "high", "inputConfig": {"requests": {"requests": rows("a")}}}, 400),
        ({"priority": 2**63, "inputConfig": {"requests": {"requests": rows("a")}}}, 400),
        ({"model": "models/other", "inputConfig": {"requests": {"requests": rows("a")}}}, 400),
    ],
)
def test_wrong_creates_are_refused(server: Server, batch: Any, code: int) -> None:
    """Before anything is made."""
    assert server.error("POST", CREATE, {"batch": batch})["code"] == code
    assert server.json("GET", "/v1/batches") == {}


def test_an_unknown_model_is_named(server: Server) -> None:
    """404 in the words of the real service, with the version that was called."""
    error = server.error("POST", "/v1beta/models/no-model:asyncBatchEmbedContent", {})
    assert (error["code"], error["status"]) == (404, "NOT_FOUND")
    assert error["message"].startswith("models/no-model is not found for API version v1beta, or")


def test_limits_can_be_set(start: Start) -> None:
    """Body, line, and unfinished batches."""
    engine = FakeEngine(DIMS, delay_s=0.3)
    server = start(engine=engine, max_inline_bytes=2000, max_batches=2)
    assert "2000 bytes" in server.error("POST", CREATE, {"x": "y" * 3000})["message"]
    chunked = server.http.post(CREATE, content=iter([b"x" * 1500, b"x" * 1500]))
    assert chunked.status_code == 400
    file_name = server.upload(keyed("ok", "x" * 2500))
    error = server.error("POST", CREATE, {"batch": {"inputConfig": {"fileName": file_name}}})
    assert error["message"] == "Error on line 2: longer than 2000 bytes"
    names = [server.inline("a"), server.inline("b")]
    body = {"batch": {"inputConfig": {"requests": {"requests": rows("c")}}}}
    error = server.error("POST", CREATE, body)
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    for name in names:
        server.ended(name)
    server.ended(server.inline("c"))


def test_lists_are_paged_and_never_hold_results(server: Server) -> None:
    """Newest first; a token leads on exactly while there is more."""
    names = [server.inline(f"text {n}", displayName=f"n{n}") for n in range(5)]
    for name in names:
        server.ended(name)
    seen, token, pages = [], "", 0
    while True:
        page = server.json("GET", f"/v1/batches?pageSize=2&pageToken={token}")
        assert page["operations"]
        for operation in page["operations"]:
            assert "response" not in operation
            assert "output" not in operation["metadata"]
            assert operation["done"] is True
        seen += [operation["name"] for operation in page["operations"]]
        pages += 1
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert (seen, pages) == (names[::-1], 3)
    assert "nextPageToken" not in server.json("GET", "/v1/batches?pageSize=5")
    assert server.json("GET", "/v1/batches?filter=x") == server.json("GET", "/v1/batches")


def test_progress_moves_while_a_batch_runs(start: Start) -> None:
    """Counts grow from poll to poll; `done` is absent until the end."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.05))
    name = server.create(
        {"inputConfig": {"fileName": server.upload(keyed(*(f"t{n}" for n in range(3000))))}}
    )
    seen = set()
    deadline = time.monotonic() + 30
    while not (shown := server.json("GET", f"/v1/{name}")).get("done"):
        seen.add(shown["metadata"]["batchStats"].get("successfulRequestCount", "0"))
        assert "response" not in shown
        assert time.monotonic() < deadline
    assert len(seen) >= 3


def test_a_cancelled_batch_keeps_what_is_done(start: Start) -> None:
    """CANCELLED with the rows done so far, in order; the rest stays pending."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.1))
    texts = [f"t{n}" for n in range(9000)]
    name = server.create({"inputConfig": {"fileName": server.upload(keyed(*texts))}})
    deadline = time.monotonic() + 30
    while True:
        stats = server.json("GET", f"/v1/{name}")["metadata"]["batchStats"]
        if int(stats.get("successfulRequestCount", 0)):
            break
        assert time.monotonic() < deadline
    assert server.json("POST", f"/v1/{name}:cancel") == {}
    shown = server.ended(name)
    assert shown["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert shown["error"]["code"] == 1
    stats = shown["metadata"]["batchStats"]
    done = int(stats["successfulRequestCount"])
    assert 0 < done < 9000
    assert int(stats["pendingRequestCount"]) == 9000 - done
    content = server.http.get(f"/v1/{shown['response']['responsesFile']}:download?alt=media")
    lines = [orjson.loads(line) for line in content.content.splitlines()]
    assert [line["key"] for line in lines] == [f"k{n}" for n in range(done)]
    assert server.json("POST", f"/v1/{name}:cancel", {}) == {}
    assert server.ended(name) == shown


def test_a_batch_cancelled_before_it_began_has_no_results(start: Start) -> None:
    """CANCELLED, no output, every row pending."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.5))
    server.inline("a")
    server.inline("b")
    name = server.inline("c")
    server.json("POST", f"/v1/{name}:cancel")
    shown = server.ended(name)
    assert shown["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert "response" not in shown
    assert shown["metadata"]["batchStats"] == {"requestCount": "1", "pendingRequestCount": "1"}


def test_priority_and_name_can_be_changed(start: Start) -> None:
    """By mask, or by what the body holds; nothing else."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.3))
    name = server.inline("a", displayName="old", priority="3")
    path = f"/v1/{name}:updateEmbedContentBatch"
    assert server.json("PATCH", path, {"priority": 10})["priority"] == "10"
    changed = server.json("PATCH", path, {"displayName": "new"})
    assert (changed["displayName"], changed["priority"]) == ("new", "10")
    assert "priority" not in server.json("PATCH", path + "?updateMask=priority", {})
    assert server.json("PATCH", path + "?update_mask=display_name", {"display_name": "x"})[
        "displayName"
    ] == "x"  # fmt: skip
    for wrong in ("?updateMask=state", "?updateMask=priority,name"):
        assert server.error("PATCH", path + wrong, {})["code"] == 400
    assert server.error("PATCH", path, {"displayName": "x" * 513})["code"] == 400
    assert server.ended(name)["metadata"]["displayName"] == "x"


def test_a_deleted_batch_is_gone(server: Server) -> None:
    """With its result file, and twice is 404."""
    name = server.create({"inputConfig": {"fileName": server.upload(keyed("a"))}})
    result = server.ended(name)["response"]["responsesFile"]
    assert server.json("DELETE", f"/v1/{name}", {}) == {}
    for method, path in (
        ("GET", name),
        ("DELETE", name),
        ("POST", f"{name}:cancel"),
        ("GET", f"{result}:download?alt=media"),
        ("GET", result),
    ):
        assert server.error(method, f"/v1/{path}")["code"] == 404
    assert not list((server.service.settings.folder / "batches").iterdir())


def test_a_running_batch_can_be_deleted(start: Start) -> None:
    """It stops, and the place it took is free again."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.1), max_batches=1)
    name = server.create(
        {"inputConfig": {"fileName": server.upload(keyed(*(f"t{n}" for n in range(5000))))}}
    )
    server.json("DELETE", f"/v1/{name}")
    assert server.ended(server.inline("a"))["done"]


@pytest.mark.parametrize("name", ["x", "A" * 36, "..", "%2e%2e%2f", "a" * 37, "%00" * 36])
def test_strange_names_are_not_found(server: Server, name: str) -> None:
    """404 for what can be no batch; nothing touches a path."""
    assert server.error("GET", f"/v1/batches/{name}")["code"] == 404


def test_aliases_count_in_the_echo(server: Server) -> None:
    """The model comes back as it was called."""
    body = {"batch": {"inputConfig": {"requests": {"requests": rows("a")}}}}
    made = server.json("POST", "/v1/models/fake:asyncBatchEmbedContent", body)
    assert made["metadata"]["model"] == "models/fake"


def test_folders_left_behind_are_swept_again_and_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the start alone; the folder of a create in flight is young and stays."""
    monkeypatch.setattr("embatch.server.service.SWEEP_S", 0.01)
    server = start()
    server.ended(server.inline("a"))
    store = server.service.store
    young, old = store.folder("young"), store.folder("old")
    young.mkdir()
    old.mkdir()
    long_ago = time.time() - ORPHAN_AGE_S - 60
    os.utime(old, (long_ago, long_ago))
    deadline = time.monotonic() + 10
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert young.exists()


@pytest.mark.parametrize("ask", ["delete", "cancel"])
def test_a_full_disk_can_be_emptied(
    start: Start, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """Room is kept back for the database's word that a batch is gone, and taken again later."""
    server = start(engine=FakeEngine(DIMS, delay_s=0.1))
    store, room = server.service.store, server.service.room
    ballast = server.service.settings.folder / BALLAST_FILE
    assert ballast.stat().st_blocks * 512 >= BALLAST_BYTES
    name = server.inline("a", "b")
    remove = getattr(store, ask)

    def refuse(batch_id: str) -> Any:
        if ballast.exists():
            with store.database.transaction() as db:
                pages = db.execute("PRAGMA page_count").fetchone()[0]
                db.execute(f"PRAGMA max_page_count = {pages}")
                try:
                    db.execute("CREATE TABLE large AS SELECT zeroblob(1000000)")
                finally:
                    db.execute("PRAGMA max_page_count = 1000000")
        return remove(batch_id)

    monkeypatch.setattr(store, ask, refuse)
    method, path = ("DELETE", name) if ask == "delete" else ("POST", f"{name}:cancel")
    assert server.json(method, f"/v1/{path}", {}) == {}
    assert not ballast.exists()
    room.keep()
    assert ballast.exists()


def test_a_batch_whose_results_find_no_room_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its creation, and nothing of it stays."""
    usage = shutil.disk_usage(server.service.settings.folder)._replace(free=DIMS * 17 + 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    name = server.inline("a")
    refused = server.error(
        "POST", CREATE, {"batch": {"inputConfig": {"requests": {"requests": rows("a", "b")}}}}
    )
    assert refused["code"] == 503
    assert "2 rows of 16 dims" in refused["message"]
    assert server.ended(name)["done"]
    folder = server.service.settings.folder
    assert len(list((folder / "batches").iterdir())) == 1
    assert not list((folder / "incoming").iterdir())


def test_old_results_are_swept_without_reading_young_ones(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only batches that ended long ago are read, and go; unfinished ones stay however old."""
    server = start(result_lifetime_s=100.0)
    old, young = server.inline("a"), server.inline("b")
    for name in (old, young):
        server.ended(name)
    store = server.service.store
    unwritten = server.inline("c")
    server.ended(unwritten)
    for name, unseen in ((old, False), (unwritten, True)):
        batch = store.find(name.removeprefix("batches/"))
        assert batch is not None
        with store.database.transaction() as db:
            db.execute("UPDATE batches SET ended_at = ended_at - 200 WHERE id = ?", (batch.id,))
            if unseen:
                db.execute(
                    "UPDATE batches SET details = json_set(details, '$.output', NULL)"
                    " WHERE id = ?", (batch.id,)
                )  # fmt: skip
    read: list[str] = []

    def parse(row: Any) -> Any:
        read.append(f"batches/{row['label']}")
        return parse_batch(row)

    with monkeypatch.context() as patched:
        patched.setattr("embatch.service.store.parse_batch", parse)
        server.service.batches.sweep()
    assert set(read) == {old, unwritten}
    assert server.error("GET", f"/v1/{old}")["code"] == 404
    for name in (young, unwritten):
        assert server.json("GET", f"/v1/{name}")["name"] == name
