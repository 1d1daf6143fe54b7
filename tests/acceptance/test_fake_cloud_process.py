"""The fake cloud as a process of its own: its line, its controls, kill -9, constant memory."""

import hashlib
import http.client
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import orjson
import psutil
import pytest

from embatch.testing.cloud import CloudProcess, ControlRefusedError, Fault, expected_vector

MIB = 1 << 20
CHUNK = 8 * MIB
CREATE = "/v1beta/models/gemini-embedding-001:asyncBatchEmbedContent"


def send(cloud, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc, timeout=120)
    try:
        sent = {"x-goog-api-key": cloud.api_key, **headers}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def create(cloud, texts, name="job"):
    rows = [
        {
            "request": {"content": {"parts": [{"text": text}]}, "outputDimensionality": 128},
            "metadata": {"key": str(n)},
        }
        for n, text in enumerate(texts)
    ]
    batch = {"displayName": name, "inputConfig": {"requests": {"requests": rows}}}
    status, _, body = send(cloud, "POST", CREATE, orjson.dumps({"batch": batch}))
    assert status == 200, body
    return orjson.loads(body)["name"]


def get(cloud, name):
    return orjson.loads(send(cloud, "GET", f"/v1beta/{name}")[2])


def test_command_line(tmp_path):
    """One JSON line says where it listens; --faults are in force; SIGTERM ends it with 0."""
    faults = tmp_path / "faults.json"
    faults.write_bytes(orjson.dumps([{"kind": "server_error", "times": 1}]))
    command = [sys.executable, "-m", "embatch.testing.cloud", "--port", "0"]
    command += ["--state", str(tmp_path / "state"), "--seed", "5", "--faults", str(faults)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        where = orjson.loads(process.stdout.readline())
        parts = urlsplit(where["url"])
        assert parts.hostname == "127.0.0.1"
        seen = []
        for _ in range(2):
            connection = http.client.HTTPConnection(parts.netloc, timeout=20)
            connection.request("GET", f"/v1/models?key={where['api_key']}")
            seen.append(connection.getresponse().status)
            connection.close()
        process.terminate()
        assert process.wait(20) == 0
    assert seen == [503, 200]


def test_controls_reach_the_process():
    """Faults, clock, jobs and bill, as in process; a wrong call is refused aloud."""
    with CloudProcess(manual_clock=True) as cloud:
        id_ = cloud.add_fault(Fault("job_stuck"))
        name = create(cloud, ["a", "b"])
        began = cloud.now()
        cloud.advance(10)
        assert cloud.now() == began + 10
        assert [job["state"] for job in cloud.jobs()] == [None]
        assert [fault["struck"] for fault in cloud.faults()] == [1]
        cloud.clear_faults(id_)
        cloud.finish(name)
        assert get(cloud, name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
        assert (cloud.bill().rows, cloud.times_billed("a")) == (2, 1)
        assert cloud.crashes() == []
        with pytest.raises(ControlRefusedError, match=r"not found"):
            cloud.finish("batches/none")


def test_kill_and_restart_keep_the_state(tmp_path):
    """After kill -9 the same port serves the same jobs, faults, clock and bill."""
    with CloudProcess(state=tmp_path, manual_clock=True) as cloud:
        url = cloud.url
        done = create(cloud, ["a"])
        cloud.finish(done)
        waiting = create(cloud, ["b"])
        cloud.add_fault(Fault("usage_missing", id="mine"))
        cloud.advance(0.01)
        now = cloud.now()
        cloud.kill()
        cloud.restart()
        assert (cloud.url, cloud.now()) == (url, now)
        assert [fault["id"] for fault in cloud.faults()] == ["mine"]
        assert get(cloud, done)["done"] is True
        cloud.finish(waiting)
        items = get(cloud, waiting)["response"]["inlinedResponses"]["inlinedResponses"]
        values = np.array(items[0]["response"]["embedding"]["values"], dtype=np.float32)
        assert np.array_equal(values, expected_vector("b", dims=128))
        assert cloud.bill().rows == 2


def test_kill_while_results_are_written(tmp_path):
    """A job killed half way is written anew and billed once."""
    rows = 20_000
    with CloudProcess(state=tmp_path, job_duration_s=0.0) as cloud:
        line = b'{"key":"%d","request":{"content":{"parts":[{"text":"t%d"}]}}}\n'
        body = b"".join(line % (n, n) for n in range(rows))
        name = upload(cloud, [body], len(body))
        batch = {"batch": {"displayName": "x", "inputConfig": {"fileName": name}}}
        status, _, told = send(cloud, "POST", CREATE, orjson.dumps(batch))
        assert status == 200, told
        job = orjson.loads(told)["name"]
        outputs = tmp_path / "jobs" / job.removeprefix("batches/") / "output-0.jsonl"
        wait(lambda: outputs.exists() and outputs.stat().st_size > MIB)
        cloud.kill()
        cloud.restart()
        assert cloud.bill().rows == 0
        wait(lambda: get(cloud, job).get("done"))
        bill = cloud.bill()
        assert (bill.rows, bill.rows_billed_twice) == (rows, 0)


def wait(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def upload(cloud, pieces, size):
    """Uploads pieces of whole chunks, one a request."""
    status, headers, _ = send(
        cloud,
        "POST",
        "/upload/v1beta/files",
        b"{}",
        **{
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
        },
    )
    assert status == 200
    place = headers["x-goog-upload-url"].removeprefix(cloud.url)
    at = 0
    for piece in pieces:
        last = at + len(piece) == size
        command = "upload, finalize" if last else "upload"
        sent = {"X-Goog-Upload-Offset": str(at), "X-Goog-Upload-Command": command}
        status, headers, body = send(cloud, "POST", place, piece, **sent)
        assert status == 200, body
        at += len(piece)
    return orjson.loads(body)["file"]["name"]


def test_a_1_gb_upload_and_a_2_gb_download_stream(tmp_path):
    """The process's memory does not grow with the files."""
    size_up, size_down = 1024 * MIB, 2048 * MIB
    prepared = tmp_path / "prepared.jsonl"
    with prepared.open("wb") as file:
        file.truncate(size_down)
    with CloudProcess() as cloud:
        watched = psutil.Process(cloud.pid)
        before = watched.memory_info().rss
        piece = b"x" * (64 * MIB)
        name = upload(cloud, (piece for _ in range(size_up // len(piece))), size_up)
        told = orjson.loads(send(cloud, "GET", f"/v1/{name}")[2])
        assert told["sizeBytes"] == str(size_up)
        batch = cloud.prepare_batch(str(prepared), rows=1)
        result = get(cloud, batch)["response"]["responsesFile"]
        connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc, timeout=120)
        connection.request(
            "GET", f"/v1/{result}:download?alt=media", headers={"x-goog-api-key": cloud.api_key}
        )
        answer = connection.getresponse()
        received, digest = 0, hashlib.sha256()
        while piece := answer.read(4 * MIB):
            received += len(piece)
            digest.update(piece[:1])
        connection.close()
        grown = watched.memory_info().rss - before
    assert received == size_down
    assert grown < 64 * MIB
