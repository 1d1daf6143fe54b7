"""The Files API over a real socket, and its records on a clock that can be moved."""

import base64
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from embatch.server.settings import ServerSettings
from embatch.server.shelf import Shelf
from embatch.server.wire import ApiError

from .conftest import Server, Start, keyed

CHUNK = 8 << 20
STATUS = "x-goog-upload-status"
RECEIVED = "x-goog-upload-size-received"


def begin(server: Server, body: Any = None, version: str = "v1beta", **headers: str) -> str:
    """The URL of a new upload."""
    answer = server.http.post(
        f"/upload/{version}/files",
        json=body or {},
        headers={
            "X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", **headers
        },
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers[STATUS] == "active"
    assert answer.headers["x-goog-upload-chunk-granularity"] == str(CHUNK)
    assert answer.content == b""
    return str(answer.headers["x-goog-upload-url"])


def send(server: Server, url: str, command: str, offset: int = 0, content: bytes = b"") -> Any:
    """One chunk request; it bears no key."""
    return server.http.post(
        url,
        content=content,
        headers={"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)},
    )


def test_a_resumable_upload_in_chunks(server: Server) -> None:
    """Offsets grow, the last chunk gives the file, with its hash as the wire spells it."""
    content = os.urandom(CHUNK + 1000)
    url = begin(
        server,
        {"file": {"display_name": "d", "mime_type": "text/x", "size_bytes": len(content)}},
        **{
            "X-Goog-Upload-Header-Content-Length": str(len(content)),
            "X-Goog-Upload-Header-Content-Type": "application/jsonl",
        },
    )
    first = send(server, url, "upload", 0, content[:CHUNK])
    assert (first.status_code, first.headers[STATUS], first.headers[RECEIVED]) == (
        200,
        "active",
        str(CHUNK),
    )
    assert send(server, url, "query").headers[RECEIVED] == str(CHUNK)
    last = send(server, url, "upload, finalize", CHUNK, content[CHUNK:])
    file = last.json()["file"]
    assert last.headers[STATUS] == "final"
    assert (file["sizeBytes"], file["displayName"], file["state"], file["mimeType"]) == (
        str(len(content)),
        "d",
        "ACTIVE",
        "application/jsonl",
    )
    digest = hashlib.sha256(content).hexdigest()
    assert base64.b64decode(file["sha256Hash"]).decode() == digest
    assert len(file["name"].removeprefix("files/")) == 12
    assert send(server, url, "query").json() == {"file": file}
    again = send(server, url, "upload, finalize", CHUNK, b"x")
    assert (again.status_code, again.headers[STATUS]) == (400, "final")
    assert server.json("GET", f"/v1/{file['name']}") == file


@pytest.mark.parametrize(
    ("command", "offset", "size"),
    [
        ("upload, finalize", 5, 10),
        ("upload", 0, 100),
        ("upload, finalize", 0, 99),
        ("upload, finalize", 0, 101),
        ("dance", 0, 100),
        ("", 0, 100),
    ],
)
def test_wrong_chunks_are_refused(server: Server, command: str, offset: int, size: int) -> None:
    """400 with the upload's status; what was received before stays, and it can go on."""
    url = begin(server, **{"X-Goog-Upload-Header-Content-Length": "100"})
    refused = send(server, url, command, offset, b"x" * size)
    assert refused.status_code == 400
    assert refused.headers[STATUS] == "active"
    assert refused.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert send(server, url, "query").headers[RECEIVED] == "0"
    assert send(server, url, "upload, finalize", 0, b"x" * 100).status_code == 200


def test_a_cancelled_upload_is_over(server: Server) -> None:
    """No chunk is taken any more, no byte is kept."""
    url = begin(server)
    assert send(server, url, "cancel").headers[STATUS] == "cancelled"
    assert send(server, url, "query").headers[STATUS] == "cancelled"
    assert send(server, url, "upload, finalize", 0, b"x").status_code == 400
    assert not list((server.service.settings.folder / "blobs").iterdir())


@pytest.mark.parametrize("upload_id", ["x", "0" * 40, "../../../etc/passwd", "", "%00"])
def test_an_unknown_upload_is_not_found(server: Server, upload_id: str) -> None:
    """404, and nothing touches a path."""
    answer = send(server, f"/upload/v1/files?upload_id={upload_id}", "query")
    assert answer.status_code == 404
    assert answer.headers[STATUS] == "cancelled"


def raw_chunk(server: Server, url: str, *, announced: int, content: bytes) -> socket.socket:
    """A connection that has sent part of a chunk."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0))
    connection.sendall(
        f"POST {parts.path}?{parts.query} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {announced}\r\nX-Goog-Upload-Command: upload, finalize\r\n"
        "X-Goog-Upload-Offset: 0\r\n\r\n".encode()
        + content
    )
    return connection


def received(server: Server, url: str, at_least: int) -> int:
    """Bytes received, once they are so many."""
    deadline = time.monotonic() + 10
    while True:
        count = int(send(server, url, "query").headers[RECEIVED])
        if count >= at_least:
            return count
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_broken_connection_keeps_what_came(server: Server) -> None:
    """A query tells how much; the upload goes on from there."""
    url = begin(server)
    content = os.urandom(3_000_000)
    raw_chunk(server, url, announced=len(content), content=content[:2_500_000]).close()
    at = received(server, url, 2_500_000)
    assert at == 2_500_000
    done = send(server, url, "upload, finalize", at, content[at:])
    assert done.json()["file"]["sizeBytes"] == "3000000"
    digest = base64.b64decode(done.json()["file"]["sha256Hash"]).decode()
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_client_that_comes_back_takes_its_upload_over(server: Server) -> None:
    """The server still waits on the old connection: the new one goes on, the old one hears 409."""
    url = begin(server)
    content = os.urandom(3_000_000)
    with raw_chunk(server, url, announced=len(content), content=content[:1_500_000]) as hanging:
        at = received(server, url, 1_048_576)
        refused = send(server, url, "upload, finalize", at + 1, b"")
        at = int(refused.headers[RECEIVED])
        assert 1_048_576 <= at <= 1_500_000  # what was still on its way is not waited for
        hanging.settimeout(10)
        assert hanging.recv(4096).startswith(b"HTTP/1.1 409")
    done = send(server, url, "upload, finalize", at, content[at:])
    assert done.json()["file"]["sizeBytes"] == "3000000"


def test_an_upload_survives_a_restart(start: Start) -> None:
    """With the bytes that came, under the same id."""
    server = start()
    url = begin(server, {"file": {"display_name": "d"}})
    content = os.urandom(CHUNK + 10)
    send(server, url, "upload", 0, content[:CHUNK])
    server.stop()
    server = start()
    again = server.url + url[url.index("/upload") :]
    assert send(server, again, "query").headers[RECEIVED] == str(CHUNK)
    file = send(server, again, "upload, finalize", CHUNK, content[CHUNK:]).json()["file"]
    assert (file["sizeBytes"], file["displayName"]) == (str(len(content)), "d")


def test_the_url_is_the_one_the_client_knows(start: Start) -> None:
    """Built from Host, and from what a proxy on this machine says; a bad Host harms nothing."""
    server = start(api_key="k")
    server.http.headers["x-goog-api-key"] = "k"
    url = begin(server, version="v1", Host="example.com:81")
    assert url.startswith("http://example.com:81/upload/v1/files?upload_id=")
    proxied = {"Host": "embed.example", "X-Forwarded-Proto": "https"}
    assert begin(server, **proxied).startswith("https://embed.example/upload/")
    assert begin(server, Host="[").startswith(server.url)
    assert begin(server, Host='a"b<').startswith(server.url)


def multipart(server: Server, content: bytes, head: bytes = b"{}") -> Any:
    """A multipart upload."""
    body = (
        b"--b1\r\nContent-Type: application/json\r\n\r\n" + head
        + b"\r\n--b1\r\nContent-Type: application/jsonl\r\n\r\n" + content + b"\r\n--b1--"
    )  # fmt: skip
    return server.http.post(
        "/upload/v1beta/files?uploadType=multipart",
        content=body,
        headers={"Content-Type": "multipart/related; boundary=b1"},
    )


def test_a_multipart_upload(start: Start) -> None:
    """JSON, then bytes, in one request; limits hold there too."""
    server = start(max_file_bytes=3_000_000)
    content = os.urandom(2_500_000)
    head = b'{"file":{"name":"files/mine","display_name":"d"}}'
    file = multipart(server, content, head).json()["file"]
    assert (file["name"], file["displayName"], file["mimeType"]) == (
        "files/mine",
        "d",
        "application/jsonl",
    )
    digest = base64.b64decode(file["sha256Hash"]).decode()
    assert digest == hashlib.sha256(content).hexdigest()
    assert multipart(server, b"x", head).status_code == 409
    assert multipart(server, b"x", b'{"file":{"name":"A"}}').status_code == 400
    assert multipart(server, b"x" * 3_000_001).status_code == 400
    blobs = list((server.service.settings.folder / "blobs").iterdir())
    assert len(blobs) == 1


def test_files_have_limits(start: Start) -> None:
    """Announced or not, a byte too much is refused, and what came of it is forgotten."""
    server = start(max_file_bytes=1000)
    announced = server.http.post(
        "/upload/v1/files",
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": "1001",
        },
    )
    assert announced.status_code == 400
    url = begin(server)
    assert send(server, url, "upload, finalize", 0, b"x" * 1001).status_code == 400
    streamed = server.http.post(
        url,
        content=iter([b"x" * 600, b"x" * 600]),
        headers={"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"},
    )
    assert streamed.status_code == 400
    assert send(server, url, "upload, finalize", 0, b"x" * 1000).status_code == 200


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a" * 41, "a/b", "..", "é", "files/"])
def test_names_of_files_are_checked(server: Server, name: str) -> None:
    """400 for what can be no name."""
    answer = server.http.post(
        "/upload/v1/files",
        json={"file": {"name": name}},
        headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
    )
    assert answer.status_code == 400


def test_a_name_is_given_once(server: Server) -> None:
    """409 at the begin, and at the end when two began together."""
    first, second = (begin(server, {"file": {"name": "files/mine"}}) for _ in range(2))
    assert send(server, first, "upload, finalize", 0, b"x").status_code == 200
    late = send(server, second, "upload, finalize", 0, b"y")
    assert (late.status_code, late.json()["error"]["status"]) == (409, "ALREADY_EXISTS")
    assert server.http.get("/v1/files/mine").json()["sizeBytes"] == "1"


def test_files_are_listed_in_pages(server: Server) -> None:
    """Ten by default, newest first; deleted ones are gone, and answer 403."""
    names = [server.upload(b"x") for _ in range(11)]
    page = server.json("GET", "/v1/files")
    assert [file["name"] for file in page["files"]] == names[:0:-1]
    rest = server.json("GET", f"/v1/files?pageToken={page['nextPageToken']}")
    assert [file["name"] for file in rest["files"]] == names[:1]
    assert "nextPageToken" not in rest
    assert server.json("DELETE", f"/v1/{names[0]}") == {}
    for method in ("GET", "DELETE"):
        error = server.error(method, f"/v1/{names[0]}")
        assert (error["code"], error["status"]) == (403, "PERMISSION_DENIED")
    assert len(list((server.service.settings.folder / "blobs").iterdir())) == 10


def test_results_are_downloaded_in_ranges(server: Server) -> None:
    """As a broken download goes on; a range behind the end is 416."""
    name = server.create({"inputConfig": {"fileName": server.upload(keyed("a", "b"))}})
    url = f"/v1/{server.ended(name)['response']['responsesFile']}:download?alt=media"
    whole = server.http.get(url).content
    size = len(whole)
    for asked, start, end in (
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, size - 1),
        ("bytes=-5", size - 5, size - 1),
        (f"bytes=0-{size * 2}", 0, size - 1),
    ):
        part = server.http.get(url, headers={"Range": asked})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {start}-{end}/{size}"
        assert part.content == whole[start : end + 1]
    for ignored in ("bytes=5-3", "bytes=-", "lines=1-2", "bytes=0-1,3-4"):
        assert server.http.get(url, headers={"Range": ignored}).content == whole
    behind = server.http.get(url, headers={"Range": f"bytes={size}-"})
    assert behind.status_code == 416
    assert behind.json()["error"]["code"] == 416
    assert server.http.head(url).headers["content-length"] == str(size)


def test_only_results_can_be_downloaded(server: Server) -> None:
    """An uploaded file cannot; a result cannot be deleted alone; alt=media is needed."""
    name = server.upload(keyed("a"))
    assert server.error("GET", f"/v1/{name}:download?alt=media")["code"] == 400
    batch = server.ended(server.create({"inputConfig": {"fileName": name}}))
    result = batch["response"]["responsesFile"]
    assert server.error("DELETE", f"/v1/{result}")["code"] == 400
    assert server.error("GET", f"/v1/{result}:download")["code"] == 400
    assert server.error("GET", "/v1/files/batch-" + "0" * 36)["code"] == 404
    inline = server.inline("a").removeprefix("batches/")
    server.ended("batches/" + inline)
    assert server.error("GET", f"/v1/files/batch-{inline}")["code"] == 404


# The records alone


@pytest.fixture
def clock() -> list[float]:
    """Seconds since 1970, to be moved."""
    return [time.time()]


@pytest.fixture
def shelf(tmp_path: Path, clock: list[float]) -> Any:
    """Files that are kept for 100 s."""
    made = Shelf(ServerSettings(folder=tmp_path, file_lifetime_s=100.0), clock=lambda: clock[0])
    yield made
    made.close()


def kept(shelf: Shelf, content: bytes) -> str:
    upload = shelf.begin(name="", display_name="", mime_type="", declared=None)
    shelf.blob(upload).write_bytes(content)
    return shelf.finish(upload).id


def test_files_expire(shelf: Shelf, clock: list[float], tmp_path: Path) -> None:
    """They answer 403 from then on, are not listed, and their bytes are swept."""
    old = kept(shelf, b"old")
    upload = shelf.begin(name="", display_name="", mime_type="", declared=None)
    clock[0] += 99
    new = kept(shelf, b"new")
    assert shelf.find(old).size_bytes == 3
    clock[0] += 2
    with pytest.raises(ApiError) as gone:
        shelf.find(old)
    assert gone.value.code == 403
    with pytest.raises(ApiError):
        shelf.open_input(f"files/{old}")
    page, _ = shelf.page(before_seq=None, size=10)
    assert [file.id for file in page] == [new]
    assert shelf.blob(upload).exists()
    shelf.sweep()
    assert [path.read_bytes() for path in (tmp_path / "blobs").iterdir()] == [b"new"]
    with pytest.raises(ApiError):
        shelf.upload(upload.id)


def test_bytes_without_a_record_are_swept(shelf: Shelf, clock: list[float]) -> None:
    """What a killed server left, once it is old enough to be no begin of an upload."""
    upload = shelf.begin(name="", display_name="", mime_type="", declared=None)
    stray = shelf.blob(upload).with_name("0" * 40)
    stray.write_bytes(b"x")
    shelf.sweep()
    assert stray.exists()
    clock[0] += 61
    shelf.sweep()
    assert not stray.exists()
    assert shelf.blob(upload).exists()
