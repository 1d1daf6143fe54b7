"""kill -9 of `embatch serve` while it computes, receives and writes: nothing is lost."""

import base64
import hashlib
import random
import signal
import socket
from typing import Any

import httpx2
import orjson
import pytest
from serving import DEADLINE_S, STOP_S, Server, Servers, assert_whole, eventually, jsonl

from embatch.service.scheduler import SLICE_ITEMS
from embatch.service.store import BatchStore

ROWS = 20_000
ROW_S = 0.0003
"""The whole batch takes some seconds."""
CHUNK = 1 << 23
"""What an upload's pieces must be a multiple of."""


def items_redone(servers: Servers) -> int:
    """Rows begun again, as the store counts them."""
    (database,) = (servers.folder / "data").rglob("service.db")
    store = BatchStore(database.parent)
    try:
        return store.items_redone()
    finally:
        store.close()


def computed(servers: Servers) -> int:
    """Rows that went through an engine, whatever became of them."""
    return sum(int(line) for line in servers.computed_log.read_text().split())


def sha256_of(file: dict[str, str]) -> str:
    return base64.b64decode(file["sha256Hash"]).decode()


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.soak)])
def test_a_batch_of_20_000_rows_survives_kills(servers: Servers, kills: int) -> None:
    """Restarted on its folder it completes, every row once; at most one slice a kill is redone."""
    texts = [f"row {n} of a long batch" for n in range(ROWS)]
    server = servers.start(row_s=ROW_S)
    port = server.port
    name = server.api.create_from(jsonl(texts), displayName="long")
    chance = random.Random(20_261_123)
    moments = sorted(chance.randrange(1, ROWS * 3 // 4) for _ in range(kills))
    for moment in moments:
        _reach(server, name, moment)
        before = server.api.served(name)
        server.kill()
        server = servers.start(row_s=ROW_S, port=port)
        assert server.port == port
        assert server.api.served(name) >= before, "rows that were shown done are gone"
    operation = server.api.finished(name)
    metadata = operation["metadata"]
    assert metadata["state"] == "BATCH_STATE_SUCCEEDED"
    assert metadata["batchStats"] == {
        "requestCount": str(ROWS),
        "successfulRequestCount": str(ROWS),
    }
    assert_whole(server.api.results(operation), texts)
    redone = items_redone(servers)
    assert redone <= kills * SLICE_ITEMS
    assert computed(servers) - ROWS <= redone
    print(f"{kills} kills: {redone} of {ROWS} rows begun again")


def _reach(server: Server, name: str, rows: int) -> None:
    eventually(lambda: server.api.served(name) >= rows)


def test_an_inline_batch_survives_a_kill(servers: Servers) -> None:
    """Requests that stood in the call are on disk when the call is answered."""
    texts = [f"text {n}" for n in range(2_000)]
    requests = [
        {"request": {"content": {"parts": [{"text": text}]}}, "metadata": {"n": n, "deep": [None]}}
        for n, text in enumerate(texts)
    ]
    server = servers.start(row_s=0.001)
    name = server.api.create({"requests": {"requests": requests}})
    server.kill()
    server = servers.start(row_s=0.0)
    items = server.api.finished(name)["response"]["inlinedResponses"]["inlinedResponses"]
    assert [item["metadata"] for item in items] == [one["metadata"] for one in requests]
    assert_whole(_lines(items), texts)


def _lines(items: list[dict[str, Any]]) -> list[bytes]:
    """Inline results as the lines of a file would be."""
    return [orjson.dumps({**item, "key": f"k{n}"}) for n, item in enumerate(items)]


def test_an_upload_goes_on_after_a_kill(servers: Servers) -> None:
    """What the server says it has, it has: the client goes on from there."""
    content = random.Random(1).randbytes(3 * CHUNK + 12_345)
    server = servers.start()
    url = server.api.start_upload(len(content))
    assert server.api.send(url, content[:CHUNK], 0, "upload").status_code == 200
    server.kill()
    server = servers.start(port=server.port)
    received = _received(server, url)
    assert received == CHUNK
    _send_half_a_chunk(server, url, content[CHUNK : 2 * CHUNK])
    server.kill()
    server = servers.start(port=server.port)
    received = _received(server, url)
    assert CHUNK <= received <= 2 * CHUNK
    answer = server.api.send(url, content[received:], received)
    assert answer.status_code == 200, answer.text
    file = answer.json()["file"]
    assert int(file["sizeBytes"]) == len(content)
    assert sha256_of(file) == hashlib.sha256(content).hexdigest()
    server.kill()
    server = servers.start(port=server.port)
    assert server.api.call("GET", f"/v1beta/{file['name']}") == file


def test_killed_when_an_upload_ends(servers: Servers) -> None:
    """All bytes are there, the file is not: the client finalizes again, without a byte."""
    content = random.Random(2).randbytes(CHUNK + 1)
    server = servers.start(kill_at="open:/blobs$")
    url = server.api.start_upload(len(content))
    with pytest.raises(httpx2.TransportError):
        server.api.send(url, content, 0)
    assert server.process.wait(DEADLINE_S) == -signal.SIGKILL
    server = servers.start(port=server.port)
    assert server.api.call("GET", "/v1beta/files") == {}
    assert _received(server, url) == len(content)
    answer = server.api.send(url, b"", len(content), "finalize")
    assert answer.status_code == 200, answer.text
    assert sha256_of(answer.json()["file"]) == hashlib.sha256(content).hexdigest()


def _received(server: Server, url: str) -> int:
    answer = server.api.http.post(url, headers={"X-Goog-Upload-Command": "query"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-goog-upload-status"] == "active"
    return int(answer.headers["x-goog-upload-size-received"])


def _send_half_a_chunk(server: Server, url: str, chunk: bytes) -> None:
    """Leaves the server in the middle of a body."""
    path = url.removeprefix(server.url)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Goog-Upload-Command: upload\r\n"
        f"X-Goog-Upload-Offset: {CHUNK}\r\nContent-Length: {len(chunk)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=STOP_S) as sent:
        sent.sendall(head.encode() + chunk[: len(chunk) // 2])


ENDING = {
    "before its output": r"open:/batches/\w+/output\.",
    "before its output has its name": r"os.rename:/output\.",
    "before its end is recorded": r"os.rename:/output\.>open:/batches/",
}
"""Between the last row and the moment that callers see the end, and what stands there."""


@pytest.mark.parametrize("place", ENDING)
@pytest.mark.parametrize("kind", ["file", "inline"])
def test_killed_when_a_batch_ends(servers: Servers, place: str, kind: str) -> None:
    """All rows are computed, the answer is not yet there: the next start writes it, once."""
    texts = [f"text {n}" for n in range(300)]
    server = servers.start(kill_at=ENDING[place])
    if kind == "file":
        name = server.api.create_from(jsonl(texts))
    else:
        rows = [{"request": {"content": {"parts": [{"text": text}]}}} for text in texts]
        name = server.api.create({"requests": {"requests": rows}})
    assert server.process.wait(DEADLINE_S) == -signal.SIGKILL
    assert computed(servers) == len(texts)
    server = servers.start(row_s=0.0)
    operation = server.api.finished(name)
    assert operation["metadata"]["batchStats"]["successfulRequestCount"] == str(len(texts))
    if kind == "file":
        assert_whole(server.api.results(operation), texts)
    else:
        items = operation["response"]["inlinedResponses"]["inlinedResponses"]
        assert_whole(_lines(items), texts)
    assert computed(servers) == len(texts), "nothing was computed twice"
    outputs = [path.name for path in (servers.folder / "data").rglob("output*")]
    assert len(outputs) == 1, outputs


CREATING = ["open:/incoming/", "os.link:requests.arrow", "os.link:requests.arrow>open:/batches/"]


@pytest.mark.parametrize("place", CREATING)
def test_killed_while_a_batch_is_made(servers: Servers, place: str) -> None:
    """Nobody was told of a batch: there is none, and its file can be submitted again."""
    texts = [f"text {n}" for n in range(300)]
    server = servers.start(kill_at=place)
    file = server.api.upload(jsonl(texts))
    with pytest.raises(httpx2.TransportError):
        server.api.create({"fileName": file})
    assert server.process.wait(DEADLINE_S) == -signal.SIGKILL
    server = servers.start()
    assert server.api.call("GET", "/v1beta/batches") == {}
    assert_whole(
        server.api.results(server.api.finished(server.api.create({"fileName": file}))), texts
    )
    assert list((servers.folder / "data").rglob("incoming/*")) == []


def test_a_batch_that_ended_is_there_after_any_number_of_starts(servers: Servers) -> None:
    """Results, files and the list are the same after a kill and after a graceful stop."""
    texts = [f"text {n}" for n in range(50)]
    server = servers.start()
    name = server.api.create_from(jsonl(texts), displayName="kept")
    operation = server.api.finished(name)
    files = server.api.call("GET", "/v1beta/files")
    server.kill()
    server = servers.start()
    assert server.api.poll(name) == operation
    assert server.stop() == 0
    server = servers.start()
    assert server.api.poll(name) == operation
    assert_whole(server.api.results(operation), texts)
    assert server.api.call("GET", "/v1beta/files")["files"][0]["name"] == files["files"][0]["name"]
