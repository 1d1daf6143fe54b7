"""Bodies, headers and uploads that nobody should send: an error as google.rpc has it, always."""

import copy
import http.client
import socket
import string
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import MODEL, Server, Servers

EXAMPLES = 60
"""Of each property in `make test`; the soak has twenty times as many."""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "files/x", "models/x", "\x00", "1" * 30, -(2**63), 2**64, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)

REQUEST = {
    "content": {"role": "user", "parts": [{"text": "a text"}]},
    "taskType": "RETRIEVAL_DOCUMENT",
    "title": "a title",
    "outputDimensionality": 8,
    "embedContentConfig": {"taskType": "CLUSTERING", "outputDimensionality": 8},
}
ROW = {"request": REQUEST, "metadata": {"key": "a"}}
BATCH = {
    "batch": {
        "displayName": "fuzzed",
        "model": f"models/{MODEL}",
        "priority": "3",
        "inputConfig": {"requests": {"requests": [ROW, ROW]}},
    }
}
FILE_BATCH = {"batch": {"inputConfig": {"file_name": "files/abcdefghijkl"}}}
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", f"/v1beta/models/{MODEL}:embedContent", REQUEST),
    (
        "POST",
        f"/v1/models/{MODEL}:batchEmbedContents",
        {"requests": [{"model": f"models/{MODEL}", **REQUEST}] * 2},
    ),
    ("POST", f"/v1beta/models/{MODEL}:countTokens", {"contents": [REQUEST["content"]]}),
    ("POST", f"/v1alpha/models/{MODEL}:asyncBatchEmbedContent", BATCH),
    ("POST", f"/v1beta/models/{MODEL}:asyncBatchEmbedContent", FILE_BATCH),
    ("PATCH", "/v1beta/batches/" + "a" * 36 + ":updateEmbedContentBatch", {"priority": "1"}),
    ("POST", "/v1beta/batches/" + "a" * 36 + ":cancel", {}),
    ("DELETE", "/v1beta/files/abcdefghijkl", {}),
]


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    return shared_servers.start("--max-batches", "1000000")


@pytest.fixture(scope="module", autouse=True)
def alive(server: Server) -> Iterator[None]:
    """Whatever a test of this module did, the server works after it, and nothing broke inside."""
    yield
    body = {"content": {"parts": [{"text": "still here"}]}}
    server.api.call("POST", f"/v1beta/models/{MODEL}:embedContent", json=body)
    assert server.api.call("GET", "/healthz")["status"] == "ok"
    server.assert_unbroken()


@pytest.fixture(params=[1, pytest.param(20, marks=pytest.mark.soak)], ids=["short", "long"])
def many(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Settings of a property."""
    return settings(
        max_examples=EXAMPLES * request.param,
        deadline=None,
        derandomize=request.param == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def assert_proper(answer: httpx2.Response) -> None:
    """A success in JSON, or google.rpc's error with a status that belongs to the code."""
    assert answer.status_code < 500, answer.text
    body = orjson.loads(answer.content)
    if answer.status_code == 200:
        assert isinstance(body, dict)
        return
    assert set(body) == {"error"}, body
    error = body["error"]
    assert {"code", "message", "status"} <= set(error) <= {"code", "message", "status", "details"}
    assert error["code"] == answer.status_code
    assert isinstance(error["message"], str)
    assert error["message"]
    assert set(error["status"]) <= set(string.ascii_uppercase + "_")
    assert answer.headers["content-type"].startswith("application/json")


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a document."""
    yield here
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*here, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from places(inner, (*here, place))


@st.composite
def spoilt(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three of its values replaced, removed or doubled."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(
            st.sampled_from([place for place in places(changed) if place] or [("x",)])
        )
        inner = changed
        for step in way:
            inner = inner[step]
        match draw(st.sampled_from(["replace", "remove", "snake"])):
            case "replace":
                inner[last] = draw(JSON)
            case "remove":
                del inner[last]
            case "snake" if isinstance(last, str):
                name = "".join(f"_{c.lower()}" if c.isupper() else c for c in last)
                inner[name] = inner.pop(last)
        if not changed:
            break
    return changed


@pytest.mark.parametrize(
    ("method", "path", "document"), [route for route in ROUTES if route[2]], ids=str
)
def test_spoilt_documents(
    server: Server, many: Callable[..., Any], method: str, path: str, document: Any
) -> None:
    """Every call, with a body that is nearly right."""

    @many
    @given(body=spoilt(document))
    def check(body: Any) -> None:
        assert_proper(server.api.http.request(method, path, content=orjson.dumps(_fit(body))))

    check()


def _fit(value: Any) -> Any:
    """Integers that orjson cannot write become floats, lone surrogates are none."""
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 2**1000 else 0
    if isinstance(value, dict):
        return {key: _fit(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fit(inner) for inner in value]
    return value


RAW = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: orjson.dumps(_fit(value))),
    st.sampled_from(
        [
            b"[" * 100_000,
            b'{"batch":' * 5_000,
            b'{"content":{"parts":[{"text":"\\ud800"}]}}',
            b'{"content":{"parts":[{"text":"\xed\xa0\x80"}]}}',
            b'\xef\xbb\xbf{"content":{"parts":[{"text":"a"}]}}',
            b'{"content":{"parts":[{"text":"a"}]},"outputDimensionality":1e400}',
            b'{"content":{"parts":[{"text":"a"}]},"outputDimensionality":' + b"9" * 5_000 + b"}",
            b'{"batch":{"priority":"' + b"9" * 5_000 + b'"}}',
            b"NaN",
            b'"a"',
            b"null",
        ]
    ),
)


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES])
def test_bodies_of_any_bytes(
    server: Server, many: Callable[..., Any], method: str, path: str
) -> None:
    """Bytes that are no document of the call, nor perhaps of anything."""

    @many
    @given(body=RAW, kind=st.sampled_from(["application/json", "text/plain", "", "multipart/x"]))
    def check(body: bytes, kind: str) -> None:
        answer = server.api.http.request(method, path, content=body, headers={"content-type": kind})
        assert_proper(answer)

    check()


@pytest.mark.parametrize("wrap", ["plain", "keyed"])
def test_files_of_any_lines(server: Server, many: Callable[..., Any], wrap: str) -> None:
    """A batch over a file of spoilt lines is made, or refused with the line's number."""

    @many
    @given(rows=st.lists(spoilt(ROW) | RAW, min_size=1, max_size=4))
    def check(rows: list[Any]) -> None:
        lines = [
            row
            if isinstance(row, bytes)
            else orjson.dumps(
                _fit({**row, "key": 1} if wrap == "keyed" and isinstance(row, dict) else row)
            )
            for row in rows
        ]
        file = server.api.upload(b"\n".join(lines))
        answer = server.api.http.post(
            f"/v1beta/models/{MODEL}:asyncBatchEmbedContent",
            json={"batch": {"inputConfig": {"fileName": file}}},
        )
        assert_proper(answer)
        if answer.status_code != 200:
            message = answer.json()["error"]["message"]
            assert "Error on line" in message or "No requests" in message

    check()


SEGMENT = st.text(
    string.ascii_lowercase + string.digits + "-._~:%/?#@!$&'()*+,;= \x7f\u00e4\u2028", max_size=50
)


def test_targets_of_any_kind(server: Server, many: Callable[..., Any]) -> None:
    """Whatever stands in the path or the query: an answer, and nothing new on the disk."""
    before = server_files(server)

    @many
    @given(
        method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "X"]),
        version=st.sampled_from(["v1", "v1beta", "v2", "upload/v1", "download/v1beta", ".."]),
        collection=st.sampled_from(["models", "batches", "files", "tunedModels", ""]),
        name=SEGMENT | st.sampled_from(["..", "../..", "%2e%2e%2f%2e%2e", "a" * 5_000, "%00", "."]),
        verb=st.sampled_from(["", ":cancel", ":download", ":embedContent", ":nothing", ":"]),
        query=st.sampled_from(["", "?pageSize=", "?pageToken=", "?alt=media&x=", "?upload_id="]),
        value=SEGMENT,
        spelled=st.booleans(),
    )
    def check(
        method: str,
        version: str,
        collection: str,
        name: str,
        verb: str,
        query: str,
        value: str,
        spelled: bool,
    ) -> None:
        safe = "" if spelled else "%/:?#@!$&'()*+,;="
        target = f"/{version}/{collection}/{quote(name, safe)}{verb}"
        answer = ask(server, method, target + (query and query + quote(value, safe)))
        if method == "HEAD":
            assert answer.status_code < 500
            assert answer.content == b""
        else:
            assert_proper(answer)

    check()
    assert server_files(server) == before


def ask(server: Server, method: str, target: str) -> httpx2.Response:
    """The answer to a request whose target no client makes neat."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        return httpx2.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    finally:
        connection.close()


def server_files(server: Server) -> list[str]:
    """What lies beside and in the data folder, the databases' own files left out."""
    folder = server.log.parent
    found = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(path for path in found if not path.endswith(("-wal", "-shm")))


COMMANDS = [
    "start",
    "upload",
    "upload, finalize",
    "finalize",
    "query",
    "cancel",
    "nothing",
    "",
    ",",
]


def test_uploads_of_any_order(server: Server, many: Callable[..., Any]) -> None:
    """The resumable protocol with its commands, offsets and sizes out of order."""

    @many
    @given(
        size=st.sampled_from(["0", "5", "100", "-1", "x", "", str(2**63), str(2**31 + 1)]),
        document=JSON,
        steps=st.lists(
            st.tuples(
                st.sampled_from(COMMANDS),
                st.sampled_from(["0", "5", "8388608", "-1", "x", "", str(2**70)]),
                st.binary(max_size=20),
                st.sampled_from(["POST", "PUT", "GET"]),
            ),
            max_size=5,
        ),
    )
    def check(size: str, document: Any, steps: list[tuple[str, str, bytes, str]]) -> None:
        begun = server.api.http.post(
            "/upload/v1beta/files",
            content=orjson.dumps(_fit({"file": document})),
            headers={
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": size,
                "X-Goog-Upload-Header-Content-Type": "text/plain",
            },
        )
        if begun.status_code != 200:
            assert_proper(begun)
            return
        for command, offset, piece, method in steps:
            answer = server.api.http.request(
                method,
                begun.headers["x-goog-upload-url"],
                content=piece,
                headers={"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": offset},
            )
            assert answer.status_code < 500, answer.text
            if answer.status_code != 200:
                assert_proper(answer)
            elif method != "GET":
                assert answer.headers["x-goog-upload-status"] in ("active", "final", "cancelled")

    check()


def test_multipart_uploads_of_any_bytes(server: Server, many: Callable[..., Any]) -> None:
    """multipart/related that is cut, doubled or has another boundary."""
    whole = (
        b"--edge\r\nContent-Type: application/json\r\n\r\n"
        b'{"file":{"displayName":"a"}}\r\n'
        b"--edge\r\nContent-Type: text/plain\r\n\r\nthe bytes\r\n--edge--\r\n"
    )

    @many
    @given(
        start=st.integers(0, len(whole)),
        end=st.integers(0, len(whole)),
        inserted=st.binary(max_size=30),
        edge=st.sampled_from(["edge", "", "other", "e" * 300, '"edge"', "edge--"]),
    )
    def check(start: int, end: int, inserted: bytes, edge: str) -> None:
        answer = server.api.http.post(
            "/upload/v1beta/files",
            params={"uploadType": "multipart"},
            content=whole[:start] + inserted + whole[end:],
            headers={"content-type": f"multipart/related; boundary={edge}"},
        )
        assert_proper(answer)

    check()


HEADS = [
    b"",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /v1beta/models?" + b"pageSize=1&" * 5_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: repr(head[:24]))
def test_what_is_no_request(server: Server, head: bytes) -> None:
    """Bytes that are no HTTP get a 4xx or a closed connection, in bounded time."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sent:
        try:
            sent.sendall(head)
            sent.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sent.recv(65536):
                answer += piece
        except ConnectionError:
            return
    status = answer.split(b" ", 2)[1] if answer else b""
    assert status[:1] in (b"", b"2", b"4"), answer[:500]
