"""Keys, connections, failures, logs, figures: what every call meets before and after its work."""

import contextlib
import logging
import select
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from embatch.cli.logs import JsonFormat, TextFormat
from embatch.listening import bind
from embatch.server import bodies, connection
from embatch.server.app import create_app
from embatch.server.weather import Weather
from embatch.server.wire import ApiError
from embatch.testing import FakeEngine
from embatch.vectors import truncate

from .conftest import DIMS, MODEL, Server, Start, keyed, rows

KEY = "a-key-of-the-operator"
EMBED = f"/v1/models/{MODEL}:embedContent"
CONTENT = {"content": {"parts": [{"text": "a secret text"}]}}


@pytest.mark.parametrize(
    "shown",
    [
        {"headers": {"x-goog-api-key": KEY}},
        {"params": {"key": KEY}},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
    ],
)
def test_a_key_is_shown_in_three_ways(start: Start, shown: dict[str, Any]) -> None:
    """Header, query, bearer token."""
    server = start(api_key=KEY)
    assert server.json("GET", "/v1/models", **shown)["models"]


def test_a_wrong_key_is_400_and_none_is_403(start: Start) -> None:
    """As the real service has it; on every route but those that are open."""
    server = start(api_key=KEY)
    for wrong in (KEY[:-1], KEY + "x", "é", "x" * 5000):
        error = server.error("GET", "/v1/models", headers={"x-goog-api-key": wrong.encode()})
        assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
        assert error["details"][0]["reason"] == "API_KEY_INVALID"
        assert wrong not in error["message"]
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", EMBED),
        ("GET", "/v1beta/batches"),
        ("POST", "/upload/v1/files"),
        ("GET", "/v1/files/x"),
        ("GET", "/metrics"),
    ):
        error = server.error(method, path)
        assert (error["code"], error["status"]) == (403, "PERMISSION_DENIED")
    for open_ in ("/healthz", "/openapi.json"):
        assert server.http.get(open_).status_code == 200


def test_a_chunk_needs_no_key(start: Start) -> None:
    """Its upload's id is the secret; any other id opens nothing."""
    server = start(api_key=KEY)
    server.http.headers["x-goog-api-key"] = KEY
    name = server.upload(b"x")
    begun = server.http.post(
        "/upload/v1/files",
        headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
    )
    del server.http.headers["x-goog-api-key"]
    chunk = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
    url = begun.headers["x-goog-upload-url"]
    assert server.http.post(url, content=b"y", headers=chunk).status_code == 200
    assert server.http.post("/upload/v1/files?upload_id=", headers=chunk).status_code == 403
    assert server.http.get(f"/v1/{name}?upload_id=x").status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1.rebound.example:8787"},
        {"Host": "192.168.0.7"},
        {"Host": "[::2]"},
        {"Host": "[bad"},
        {"Origin": "https://site.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost.site.example"},
    ],
)
def test_web_pages_cannot_reach_a_server_without_a_key(
    start: Start, headers: dict[str, str]
) -> None:
    """Neither by a name that leads here nor from a page of another site; nothing happens."""
    server = start()
    for method, path in (("GET", "/v1/models"), ("POST", EMBED), ("GET", "/healthz")):
        error = server.error(method, path, CONTENT, headers=headers)
        assert (error["code"], error["status"]) == (403, "PERMISSION_DENIED")
        assert "--allow-host" in error["message"]
    assert server.engine.texts_embedded == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:1"},
        {"Host": "127.3.2.1"},
        {"Host": "[::1]:8787"},
        {"Host": "LOCALHOST"},
        {"Host": "My.Proxy.example", "Origin": "https://my.proxy.example"},
        {"Origin": "http://localhost:3000"},
    ],
)
def test_loopback_and_allowed_names_pass(start: Start, headers: dict[str, str]) -> None:
    """With a key any name does: the page would have to know it."""
    server = start(allowed_hosts=frozenset({"my.proxy.example"}))
    assert server.json("POST", EMBED, CONTENT, headers=headers)
    server.stop()
    server = start(api_key=KEY)
    strange = {"Host": "a.example", "Origin": "https://b.example", "x-goog-api-key": KEY}
    assert server.json("GET", "/v1/models", headers=strange)


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    made = socket.create_connection((parts.hostname or "", parts.port or 0))
    made.settimeout(10)
    return made


def answered(made: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer after which the connection ends."""
    got = b""
    while piece := made.recv(65536):
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET /" + b"x" * 66_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_shaped_400(server: Server, garbage: bytes) -> None:
    """And the server goes on."""
    with connect(server) as made:
        made.sendall(garbage)
        made.shutdown(socket.SHUT_WR)
        head, body = answered(made)
    assert head.startswith(b"HTTP/1.1 400")
    assert orjson.loads(body)["error"]["status"] == "INVALID_ARGUMENT"
    assert server.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", [EMBED, "/"])
def test_a_bad_chunk_in_a_body_harms_nothing(
    server: Server, records: list[logging.LogRecord], path: str
) -> None:
    """One shaped answer, and no error in the log."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with connect(server) as made:
        made.sendall(head + b"5\r\nhello\r\nzz\r\n")
        got, body = answered(made)
    assert got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    assert "error" in orjson.loads(body)
    assert server.http.get("/healthz").status_code == 200
    assert [one for one in records if one.levelno >= logging.WARNING] == []


def test_heads_must_come_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for a head that trickles, on a first and on a later request of a connection."""
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    server = start()
    with connect(server) as made:
        head, body = answered(made)
        assert head.startswith(b"HTTP/1.1 408")
        assert orjson.loads(body)["error"]["status"] == "DEADLINE_EXCEEDED"
    with connect(server) as made:
        made.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not made.recv(65536).endswith(b"}"):
            pass
        made.sendall(b"GET /heal")
        head, _ = answered(made)
        assert head.startswith(b"HTTP/1.1 408")


def test_bodies_must_come_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for a body that trickles; others are served meanwhile."""
    monkeypatch.setattr(bodies, "BODY_GRACE_S", 0.3)
    server = start()
    with connect(server) as made:
        made.sendall(
            f"POST {EMBED} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        assert server.http.get("/healthz").status_code == 200
        head, body = answered(made)
    assert head.startswith(b"HTTP/1.1 408")
    assert orjson.loads(body)["error"]["status"] == "DEADLINE_EXCEEDED"


def stalled(server: Server) -> tuple[socket.socket, int]:
    """A connection that has asked for a large result and takes little of it; the result's size."""
    name = server.create(
        {"inputConfig": {"fileName": server.upload(keyed(*(f"t{n}" for n in range(2000))))}}
    )
    result = server.ended(name)["response"]["responsesFile"]
    size = int(server.json("GET", f"/v1/{result}")["sizeBytes"])
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(10)
    parts = urlsplit(server.url)
    made.connect((parts.hostname or "", parts.port or 0))
    made.sendall(
        f"GET /v1/{result}:download?alt=media HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    return made, size


def test_a_reader_that_takes_nothing_is_dropped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is reset though it never reads on, and others are served meanwhile."""
    monkeypatch.setattr("embatch.server.edge.SEND_STALL_S", 0.3)
    monkeypatch.setattr(connection, "UNSENT_S", 0.6)
    server = start(engine=FakeEngine(768))
    made, size = stalled(server)
    with made:
        assert server.http.get("/healthz").status_code == 200
        watch = select.poll()
        watch.register(made, 0)  # errors and ends only
        assert [mask for _, mask in watch.poll(10_000)] == [select.POLLERR | select.POLLHUP]
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := made.recv(1 << 20):
                got += len(piece)
    assert got < size


def test_a_refused_client_is_not_read_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets its answer whatever it still sends, and is cut off soon after."""
    monkeypatch.setattr(connection, "LINGER_S", 0.2)

    def send_on() -> None:
        while True:
            made.sendall(b"GET /" + b"x" * 100_000)

    with connect(server) as made, pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_on()


def test_too_many_connections_are_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, shaped; those that are there go on."""
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    server = start()
    held = [connect(server) for _ in range(3)]
    try:
        with connect(server) as made:
            head, body = answered(made)
        assert head.startswith(b"HTTP/1.1 503")
        assert orjson.loads(body)["error"]["status"] == "UNAVAILABLE"
    finally:
        for one in held:
            one.close()


def test_idle_connections_make_way_in_a_crowd(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last quarter must say soon what it wants; the others have their time."""
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connection, "CROWDED_HEAD_S", 0.3)
    server = start()
    with contextlib.ExitStack() as held:
        first = [held.enter_context(connect(server)) for _ in range(3)]
        with connect(server) as last:
            assert answered(last)[0].startswith(b"HTTP/1.1 408")
        assert select.select(first, [], [], 0)[0] == []
        assert server.http.get("/healthz").status_code == 200


def test_answers_leave_at_once() -> None:
    """asyncio turns Nagle off only where the socket names its protocol."""
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/x/y", 404),
        ("PUT", "/v1/models", 405),
        ("GET", EMBED, 405),
        ("BREW", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("POST", "/v1/batches", 405),
        ("POST", "/v1/files/x:register", 404),
    ],
)
def test_what_no_route_takes_is_shaped(server: Server, method: str, path: str, code: int) -> None:
    """404 and 405 too; 405 says what is allowed."""
    answer = server.http.request(method, path)
    assert answer.json()["error"]["code"] == answer.status_code == code
    assert ("allow" in answer.headers) == (code == 405)


def test_head_is_get_without_its_body(server: Server) -> None:
    """No failure of a method that nobody asked for."""
    answer = server.http.head("/v1/models")
    assert (answer.status_code, answer.content) == (200, b"")
    assert server.http.head("/v1/nowhere").status_code == 404


class Broken:
    """An engine that works for nobody, and tells the text it was given."""

    def __getattr__(self, name: str) -> Any:
        return getattr(FakeEngine(DIMS), name)

    def embed(self, texts: list[str], **options: Any) -> Any:
        raise RuntimeError(f"cannot embed {texts[0]}")


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the server logs."""
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign]
    logger = logging.getLogger("embatch.server")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_no_text_key_or_name_is_told_or_logged(
    start: Start, records: list[logging.LogRecord]
) -> None:
    """Neither of calls that succeed nor of those that fail."""
    server = start(engine=Broken(), api_key=KEY)  # type: ignore[arg-type]
    server.http.headers["x-goog-api-key"] = KEY
    answer = server.http.post(f"{EMBED}?key={KEY}", json=CONTENT)
    assert answer.status_code == 500
    assert answer.json()["error"]["status"] == "INTERNAL"
    name = server.create(
        {
            "displayName": "a secret name",
            "inputConfig": {"requests": {"requests": rows("a secret")}},
        }
    )
    shown = server.ended(name)
    assert shown["metadata"]["state"] == "BATCH_STATE_FAILED"
    assert shown["error"]["code"] == 13
    assert "secret" not in shown["error"]["message"]
    told = [format_.format(record) for record in records
            for format_ in (JsonFormat(), TextFormat(frames=True))]  # fmt: skip
    assert told
    for line in told:
        assert "secret" not in line
        assert KEY not in line
    access = [record.getMessage() for record in records if record.name.endswith("access")]
    assert any("POST /{version}/models/{model}:embedContent 500" in line for line in access)


def test_figures_are_counted(server: Server) -> None:
    """Requests by template, batches by state, rows, bytes."""
    server.json("POST", EMBED, CONTENT)
    server.upload(b"12345")
    server.ended(server.inline("a", "b"))
    page = server.http.get("/metrics").text
    for line in (
        'embatch_serve_requests_total{method="POST",'
        'route="/{version}/models/{model}:embedContent",status="200"} 1.0',
        'embatch_serve_batches{state="completed"} 1.0',
        "embatch_serve_batches_unfinished 0.0",
        "embatch_serve_rows_embedded_total 3.0",
        "embatch_serve_tokens_read_total 11.0",
        "embatch_serve_files_bytes 5.0",
        "embatch_serve_healthy 1.0",
    ):
        assert line in page


def test_health_asks_the_worker(server: Server) -> None:
    """503 with the reason once it has stopped."""
    assert server.json("GET", "/healthz")["status"] == "ok"
    server.service.scheduler.stop()
    answer = server.http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert "worker" in answer.json()["reason"]


class Storm(Weather):
    """A weather that refuses one kind of call, before or after its effect."""

    def __init__(self, call: str, *, after: bool) -> None:
        self._call = call
        self._after = after

    async def serve(self, call: str, request: Any, endpoint: Any) -> Any:
        if call != self._call:
            return await endpoint(request)
        if self._after:
            await endpoint(request)
        raise ApiError(503, "A bad day.")


@pytest.mark.parametrize("after", [False, True])
def test_weather_stands_between_a_call_and_its_answer(start: Start, after: bool) -> None:
    """Before the effect nothing happens; after it, it has happened."""
    server = start(weather=Storm("batches.create", after=after))
    body = {"batch": {"inputConfig": {"requests": {"requests": rows("a", "b")}}}}
    assert server.error("POST", f"/v1/models/{MODEL}:asyncBatchEmbedContent", body)["code"] == 503
    listed = server.json("GET", "/v1/batches").get("operations", [])
    assert len(listed) == after


def test_embedding_at_once(server: Server) -> None:
    """One, many, refused ones; tokens beyond the model's limit are counted."""
    one = server.json("POST", EMBED, {**CONTENT, "outputDimensionality": "4"})
    assert len(one["embedding"]["values"]) == 4
    assert one["usageMetadata"]["promptTokenCount"] == 5
    requests = [
        {"model": f"models/{MODEL}", "content": {"parts": [{"text": f"t{n}"}]},
         "output_dimensionality": 4 + n % 2, "taskType": "RETRIEVAL_QUERY"}
        for n in range(100)
    ]  # fmt: skip
    many = server.json("POST", f"/v1/models/{MODEL}:batchEmbedContents", {"requests": requests})
    assert [len(one["values"]) for one in many["embeddings"]] == [4, 5] * 50
    expected = truncate(server.engine.expected(["q: t0"]), 4)[0].tolist()
    assert many["embeddings"][0]["values"] == pytest.approx(expected, abs=1e-7)
    refused = server.error("POST", EMBED, {"content": {"parts": [{"text": ""}]}})
    assert refused["message"] == "content is empty"
    body = {"contents": [{"parts": [{"text": "w " * 1000}]}]}
    counted = server.json("POST", f"/v1/models/{MODEL}:countTokens", body)
    assert counted["totalTokens"] == 1002


def test_bodies_that_are_read_at_once_are_small(server: Server) -> None:
    """Whatever the body that makes a batch may have."""
    for method, path, most in (
        ("POST", EMBED, 1 << 20),
        ("POST", f"/v1/models/{MODEL}:batchEmbedContents", 4 << 20),
        ("POST", f"/v1/models/{MODEL}:countTokens", 4 << 20),
        ("PATCH", "/v1/batches/x:updateEmbedContentBatch", 64 << 10),
    ):
        error = server.error(method, path, {"x": "y" * most})
        assert (error["code"], error["message"].split()[-2]) == (400, str(most))


def test_the_description_names_every_route(server: Server) -> None:
    """Each path and method of the application, and no other."""
    described = server.json("GET", "/openapi.json")
    shown = {(path, method.upper()) for path, ways in described["paths"].items() for method in ways}
    app: Any = create_app(server.service)
    routed = {
        (route.path.replace(":api_version", "").replace(":api_id", ""), method)
        for route in app._app.routes
        for method in route.methods - {"HEAD"}
    }
    assert shown == routed
