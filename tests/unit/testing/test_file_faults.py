"""Faults of uploads and downloads."""

import base64
import hashlib

import pytest

from embatch.testing.cloud import Fault

CHUNK = 8 << 20
BROKEN = (ConnectionResetError, BrokenPipeError)


def start(wire, size):
    reply = wire.send(
        "POST",
        "/upload/v1/files",
        {"file": {"display_name": "d"}},
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": "jsonl",
        },
    )
    assert reply.headers["x-goog-upload-status"] == "active"
    return reply.headers["x-goog-upload-url"].removeprefix(wire.cloud.url)


def query(wire, place):
    return wire.send("POST", place, b"", key=None, headers={"X-Goog-Upload-Command": "query"})


def received(wire, place, until, size):
    until(lambda: query(wire, place).headers["x-goog-upload-size-received"] == str(size))


@pytest.mark.parametrize(("keep", "held"), [(True, 5_000_000), (False, 0)])
def test_upload_drop_breaks_a_chunk(cloud, wire, until, keep, held):
    """The connection breaks at that byte; the server tells what it holds."""
    cloud.add_fault(Fault("upload_drop", times=1, args={"at_byte": 5_000_000, "keep": keep}))
    place = start(wire, CHUNK)
    with pytest.raises(BROKEN):
        wire.chunk(place, 0, b"x" * CHUNK, final=True)
    received(wire, place, until, held)
    done = wire.chunk(place, held, b"x" * (CHUNK - held), final=True)
    assert done.json["file"]["sizeBytes"] == str(CHUNK)


def test_upload_drop_every_so_many_bytes(cloud, wire, until):
    """A long upload breaks again and again, and still ends whole."""
    cloud.add_fault(Fault("upload_drop", args={"every_bytes": 300_000}))
    whole = bytes(range(256)) * 4000
    place = start(wire, len(whole))
    breaks = at = 0
    while at < len(whole):
        try:
            done = wire.chunk(place, at, whole[at:], final=True)
            at = len(whole)
        except BROKEN:
            breaks += 1
            at = breaks * 300_000
            received(wire, place, until, at)
    assert breaks == 3
    stored = done.json["file"]["sha256Hash"]
    assert base64.b64decode(stored).decode() == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("final", [False, True])
def test_upload_answer_lost(cloud, wire, final):
    """The chunk is stored although no answer came; query tells so."""
    cloud.add_fault(Fault("upload_answer_lost", times=1))
    place = start(wire, CHUNK if final else 2 * CHUNK)
    with pytest.raises(ConnectionError):
        wire.chunk(place, 0, b"x" * CHUNK, final=final)
    told = query(wire, place)
    assert told.headers["x-goog-upload-status"] == ("final" if final else "active")
    assert told.headers["x-goog-upload-size-received"] == str(CHUNK)
    if final:
        assert told.json["file"]["sizeBytes"] == str(CHUNK)


def test_file_vanished(cloud, wire):
    """403, not 404, for a file that is gone."""
    name = wire.upload(b"x\n")
    assert wire.get(f"/v1beta/{name}").status == 200
    cloud.add_fault(Fault("file_vanished", {"file": name.removeprefix("files/")}))
    reply = wire.get(f"/v1beta/{name}")
    assert (reply.status, reply.error["status"]) == (403, "PERMISSION_DENIED")


def test_file_vanished_before_a_create(cloud, wire):
    """A create over a lost file is refused with 403."""
    cloud.add_fault(Fault("file_vanished", {"route": "batches.create"}))
    assert wire.create(["a"]).status == 403


def test_file_vanished_result(cloud, wire):
    """A result file can vanish too."""
    operation = wire.finished(["a"])
    cloud.add_fault(Fault("file_vanished", {"file": "batch-*"}))
    name = operation["response"]["responsesFile"]
    assert wire.get(f"/v1beta/{name}:download", alt="media").status == 403


def test_file_processing(cloud, wire):
    """A file may not be ACTIVE at once; a create over it is refused until then."""
    cloud.add_fault(Fault("file_processing", times=1, args={"seconds": 5}))
    name = wire.upload(b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n')
    assert wire.get(f"/v1beta/{name}").json["state"] == "PROCESSING"
    body = {"batch": {"inputConfig": {"fileName": name}}}
    path = "/v1beta/models/gemini-embedding-001:asyncBatchEmbedContent"
    assert wire.post(path, body).status == 400
    cloud.advance(5)
    assert wire.get(f"/v1beta/{name}").json["state"] == "ACTIVE"
    assert wire.post(path, body).status == 200


@pytest.mark.parametrize(("times", "args"), [(2, {}), (None, {"seconds": 30})])
def test_result_late(cloud, wire, times, args):
    """A SUCCEEDED job's result file is 404 for a while."""
    operation = wire.finished(["a"])
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    cloud.add_fault(Fault("result_late", times=times, args=args))
    path = f"/v1beta/{operation['response']['responsesFile']}:download"
    assert [wire.get(path, alt="media").status for _ in range(2)] == [404, 404]
    cloud.advance(30)
    assert wire.get(path, alt="media").status == 200


def test_range_ignored(cloud, wire):
    """A server may answer a Range with everything."""
    operation = wire.finished(["a"])
    path = f"/v1beta/{operation['response']['responsesFile']}:download?alt=media"
    ranged = wire.send("GET", path, headers={"Range": "bytes=10-19"})
    whole = wire.send("GET", path)
    assert (ranged.status, ranged.body) == (206, whole.body[10:20])
    assert ranged.headers["content-range"] == f"bytes 10-19/{len(whole.body)}"
    cloud.add_fault(Fault("range_ignored"))
    ignored = wire.send("GET", path, headers={"Range": "bytes=10-19"})
    assert (ignored.status, ignored.body) == (200, whole.body)


def test_range_short(cloud, wire):
    """Less of a range than was asked for may come, and says so."""
    operation = wire.finished(["a"])
    path = f"/v1beta/{operation['response']['responsesFile']}:download?alt=media"
    whole = wire.send("GET", path).body
    cloud.add_fault(Fault("range_short", args={"bytes": 7}))
    short = wire.send("GET", path, headers={"Range": "bytes=10-"})
    assert (short.status, short.body) == (206, whole[10:17])
    assert short.headers["content-range"] == f"bytes 10-16/{len(whole)}"
