"""Starting, guarding and ending `embatch serve`."""

import os
import socket
import subprocess
import sys
import threading

import httpx2
import pytest
from serving import DEADLINE_S, MODEL, Server, Servers, assert_whole, eventually, jsonl

KEY = "a-key-of-the-tests"


def refused(servers: Servers, *arguments: str) -> str:
    """What a start says that must fail with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "embatch", "serve", "--engine", "fake", *arguments],
        env={"PATH": os.environ["PATH"], "EMBATCH_HOME": str(servers.folder / "home")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_starts_that_are_refused(servers: Servers) -> None:
    """An open door without a key, a folder in use and a port in use: each says what to do."""
    server = servers.start()
    folder = ("--data", str(servers.folder / "data"))
    assert "EMBATCH_SERVE_API_KEY" in refused(servers, "--host", "0.0.0.0", "--port", "0")
    assert "give another --data" in refused(servers, "--port", "0", *folder)
    assert "--port" in refused(servers, "--port", str(server.port))
    assert server.api.call("GET", "/healthz")["status"] == "ok"


def test_the_ready_line(servers: Servers) -> None:
    """With --json one object that says where and what; it answers at once."""
    server = servers.start("--model", "a-model")
    assert server.ready == {
        "url": server.url,
        "model": "a-model",
        "dims": 384,
        "data": str(servers.folder / "data"),
        "pid": server.process.pid,
    }
    assert server.api.call("GET", "/v1beta/models/a-model")["name"] == "models/a-model"


@pytest.mark.parametrize(
    ("headers", "query", "code", "status"),
    [
        ({}, "", 403, "PERMISSION_DENIED"),
        ({"x-goog-api-key": "wrong"}, "", 400, "INVALID_ARGUMENT"),
        ({"authorization": "Bearer wrong"}, "", 400, "INVALID_ARGUMENT"),
        ({}, "?key=wrong", 400, "INVALID_ARGUMENT"),
        ({"x-goog-api-key": KEY}, "", 200, ""),
        ({"authorization": f"Bearer {KEY}"}, "", 200, ""),
        ({}, f"?key={KEY}", 200, ""),
    ],
)
def test_keys(keyed: Server, headers: dict[str, str], query: str, code: int, status: str) -> None:
    """The key by header, bearer or query; without it nothing but health and description."""
    answer = httpx2.get(f"{keyed.url}/v1beta/models{query}", headers=headers)
    assert answer.status_code == code
    assert answer.json().get("error", {}).get("status", "") == status
    assert httpx2.get(f"{keyed.url}/healthz", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def keyed(shared_servers: Servers) -> Server:
    return shared_servers.start(key=KEY)


def test_unfinished_batches_are_limited(servers: Servers) -> None:
    """429 with a Help detail and nothing to hope for; a place is free when one ends."""
    server = servers.start("--max-batches", "2", row_s=0.01)
    names = [server.api.create_from(jsonl([f"{n} {row}" for row in range(300)])) for n in range(2)]
    answer = server.api.http.post(
        f"/v1beta/models/{MODEL}:asyncBatchEmbedContent",
        json={"batch": {"inputConfig": {"fileName": "files/none"}}},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert [detail["@type"].rpartition(".")[2] for detail in error["details"]] == ["Help"]
    server.api.call("POST", f"/v1beta/{names[0]}:cancel")
    server.api.finished(names[0])
    server.api.finished(server.api.create_from(jsonl(["a"])))


def test_a_graceful_stop_loses_nothing(servers: Servers) -> None:
    """SIGTERM during a batch and a download: both are served to a good end, exit code 0."""
    texts = [f"text {n}" for n in range(20_000)]
    server = servers.start(row_s=0.0)
    ended = server.api.finished(server.api.create_from(jsonl(texts)))
    url = f"/v1beta/{ended['response']['responsesFile']}:download?alt=media"
    server.stop()
    server = servers.start(row_s=0.0005)
    running = server.api.create_from(jsonl(texts))
    eventually(lambda: server.api.served(running) > 0)
    codes: list[int] = []
    with server.api.http.stream("GET", url) as answer:
        pieces = answer.iter_raw(1 << 20)
        content = next(pieces)
        stopping = threading.Thread(target=lambda: codes.append(server.stop()))
        stopping.start()
        eventually(lambda: not accepts(server.port))
        content += b"".join(pieces)
    stopping.join()
    assert codes == [0]
    assert_whole(content.splitlines(), texts)
    done = computed(servers)
    server = servers.start(row_s=0.0)
    assert_whole(server.api.results(server.api.finished(running)), texts)
    assert computed(servers) == 2 * len(texts)
    assert done < 2 * len(texts), "the stop should have come in the middle"


def accepts(port: int) -> bool:
    """Somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def computed(servers: Servers) -> int:
    """Rows that went through an engine."""
    return sum(int(line) for line in servers.computed_log.read_text().split())


def test_batches_of_another_model_wait_for_it(servers: Servers) -> None:
    """Started with another model the server leaves them, says so, and serves its own."""
    server = servers.start("--model", "first", row_s=0.001)
    texts = [f"text {n}" for n in range(3_000)]
    waiting = server.api.create_from(jsonl(texts))
    server.kill()
    server = servers.start("--model", "second")
    assert "model first" in server.said()
    server.api.finished(server.api.create_from(jsonl(["a"])))
    assert not server.api.poll(waiting).get("done")
    server.kill()
    server = servers.start("--model", "first")
    operation = server.api.finished(waiting)
    assert len(server.api.results(operation)) == len(texts)
