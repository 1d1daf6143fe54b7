"""The Files API over a bare wire."""

import base64
import hashlib
import http.client
from urllib.parse import urlsplit

import orjson
import pytest

CHUNK = 8 << 20


def start(wire, size, **file):
    return wire.send(
        "POST",
        "/upload/v1/files",
        {"file": file},
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
        },
    )


def test_resumable_upload_in_chunks(wire):
    """Granularity and offset are held; the hash is base64 of the hex digest."""
    whole = b"ab" * (CHUNK // 2) + b"tail"
    began = start(wire, len(whole), display_name="d", name="files/my-id")
    assert began.headers["x-goog-upload-chunk-granularity"] == str(CHUNK)
    place = began.headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    assert wire.chunk(place, 0, whole[:1000]).status == 400
    middle = wire.chunk(place, 0, whole[:CHUNK])
    assert (middle.status, middle.headers["x-goog-upload-status"]) == (200, "active")
    wrong = wire.chunk(place, 0, whole[:CHUNK])
    assert (wrong.status, wrong.headers["x-goog-upload-size-received"]) == (400, str(CHUNK))
    done = wire.chunk(place, CHUNK, whole[CHUNK:], final=True)
    assert done.headers["x-goog-upload-status"] == "final"
    file = done.json["file"]
    assert (file["name"], file["sizeBytes"], file["state"]) == (
        "files/my-id",
        str(len(whole)),
        "ACTIVE",
    )
    told = base64.b64decode(file["sha256Hash"]).decode()
    assert told == hashlib.sha256(whole).hexdigest()


def test_finalize_short_of_the_size_is_refused(wire):
    """The announced length is held."""
    place = start(wire, 10).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    assert wire.chunk(place, 0, b"short", final=True).status == 400
    assert wire.chunk(place, 0, b"0123456789", final=True).status == 200


def test_upload_can_be_cancelled(wire):
    """Afterwards it takes nothing."""
    place = start(wire, 4).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    headers = {"X-Goog-Upload-Command": "cancel"}
    assert wire.send("POST", place, b"", key=None, headers=headers).status == 200
    assert wire.chunk(place, 0, b"1234", final=True).status == 400


def test_starting_an_upload_needs_a_key(wire):
    """The start does; chunks are known by their upload id."""
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
    assert wire.send("POST", "/upload/v1/files", {}, key=None, headers=headers).status == 403
    assert wire.send("POST", "/upload/v1/files?upload_id=no", b"", key=None).status == 404


def test_multipart_upload(wire):
    """JSON and bytes in one body."""
    body = (
        b"--xx\r\nContent-Type: application/json\r\n\r\n"
        b'{"file":{"displayName":"m","mimeType":"application/jsonl"}}\r\n'
        b"--xx\r\nContent-Type: text/plain\r\n\r\nline one\r\nline two\r\n--xx--\r\n"
    )
    reply = wire.send(
        "POST",
        "/upload/v1beta/files?uploadType=multipart",
        body,
        headers={"Content-Type": "multipart/related; boundary=xx"},
    )
    file = reply.json["file"]
    assert (file["displayName"], file["mimeType"]) == ("m", "application/jsonl")
    digest = hashlib.sha256(b"line one\r\nline two").hexdigest()
    assert base64.b64decode(file["sha256Hash"]).decode() == digest


def test_chunked_transfer_is_understood(wire):
    """A body without a length."""
    place = start(wire, 8).headers["x-goog-upload-url"].removeprefix(wire.cloud.url)
    connection = http.client.HTTPConnection(urlsplit(wire.cloud.url).netloc, timeout=20)
    headers = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
    connection.request("POST", place, iter([b"1234", b"5678"]), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert orjson.loads(answer.read())["file"]["sizeBytes"] == "8"
    connection.close()


def test_files_are_listed_deleted_and_expire(wire, cloud):
    """Ten a page; a deleted, unknown or expired file is 403."""
    names = [wire.upload(b"x") for _ in range(12)]
    page = wire.get("/v1/files").json
    assert len(page["files"]) == 10
    assert len(wire.get("/v1/files", pageToken=page["nextPageToken"]).json["files"]) == 2
    assert wire.send("DELETE", f"/v1/{names[0]}").json == {}
    assert wire.send("DELETE", f"/v1/{names[0]}").status == 403
    assert wire.get("/v1/files/unknown").status == 403
    cloud.advance(48 * 3600 + 1)
    assert wire.get(f"/v1/{names[1]}").status == 403
    assert wire.get("/v1/files").json == {}


def test_uploads_cannot_be_downloaded_and_results_not_deleted(wire):
    """Only generated files come down; they go with their batch."""
    name = wire.upload(b"x")
    assert wire.get(f"/v1/{name}:download", alt="media").status == 400
    result = wire.finished(["a"])["response"]["responsesFile"]
    assert len(result.removeprefix("files/")) == 42
    assert wire.send("DELETE", f"/v1/{result}").status == 400
    assert f"/{result}" not in str(wire.get("/v1/files").json)
    for path in (f"/v1/{result}:download", f"/download/v1alpha/{result}:download"):
        reply = wire.get(path, alt="media")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/jsonl")


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [("bytes=0-4", 206, slice(0, 5)), ("bytes=5-", 206, slice(5, None)), ("bytes=-7", 206, -7)],
)
def test_ranges(wire, asked, status, part):
    """First, last and open ranges."""
    result = wire.finished(["a"])["response"]["responsesFile"]
    path = f"/v1/{result}:download?alt=media"
    whole = wire.send("GET", path).body
    reply = wire.send("GET", path, headers={"Range": asked})
    expected = whole[part:] if isinstance(part, int) else whole[part]
    assert (reply.status, reply.body) == (status, expected)
    beyond = wire.send("GET", path, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status == 416
