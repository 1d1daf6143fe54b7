"""Faults of calls, files and lists, through a real server on a real socket."""

import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import httpx2
import orjson
import pytest

from embatch.server.simulation.profile import Profile
from embatch.server.simulation.weather import BadWeather
from embatch.testing.cloud.faults import Fault

from .conftest import DIMS, MODEL, Server, Start, keyed, rows

CREATE = f"/v1/models/{MODEL}:asyncBatchEmbedContent"
EMBED = f"/v1/models/{MODEL}:embedContent"
CONTENT = {"content": {"parts": [{"text": "a"}]}}
BODY = {"batch": {"inputConfig": {"requests": {"requests": rows("a", "b")}}}}
Day = Callable[..., Server]


@pytest.fixture
def day(start: Start) -> Day:
    """A server with faults."""

    def made(*faults: Fault, seed: int = 0, **more: Any) -> Server:
        named = [
            Fault(**{**fault.to_json(), "id": fault.id or f"fault-{number}"})
            for number, fault in enumerate(faults, 1)
        ]
        return start(weather=BadWeather(Profile(names=["test"], faults=named, seed=seed)), **more)

    return made


def at(route: str, kind: str, times: int | None = 1, **args: Any) -> Fault:
    return Fault(kind, {"route": route}, times=times, args=args)


def test_a_429_without_hints_bears_nothing_to_wait_by(day: Day) -> None:
    """A Help link, no RetryInfo, no Retry-After; nothing was made."""
    server = day(at("batches.create", "rate_limited"))
    refused = server.http.post(CREATE, json=BODY)
    error = refused.json()["error"]
    assert (refused.status_code, error["status"]) == (429, "RESOURCE_EXHAUSTED")
    kinds = [detail["@type"].rpartition(".")[2] for detail in error["details"]]
    assert kinds == ["Help"]
    assert "retry-after" not in refused.headers
    assert server.json("GET", "/v1/batches") == {}
    assert server.ended(server.inline("a"))["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_a_429_may_tell_when(day: Day) -> None:
    """RetryInfo and the header, as the fake cloud has them."""
    fault = at("models.embedContent", "rate_limited", hints="minute", retry_delay_s=3,
               retry_after_s=7)  # fmt: skip
    refused = day(fault).http.post(EMBED, json=CONTENT)
    details = {one["@type"].rpartition(".")[2]: one for one in refused.json()["error"]["details"]}
    assert details["RetryInfo"]["retryDelay"] == "3s"
    assert refused.headers["retry-after"] == "7"


@pytest.mark.parametrize("code", [500, 502, 503, 504])
@pytest.mark.parametrize("after", [False, True])
def test_a_5xx_comes_before_or_after_the_effect(day: Day, code: int, after: bool) -> None:
    """After it, the batch exists."""
    server = day(at("batches.create", "server_error", code=code, after=after))
    assert server.error("POST", CREATE, BODY)["code"] == code
    assert len(server.json("GET", "/v1/batches").get("operations", [])) == after


def test_a_proxy_page_is_no_json(day: Day) -> None:
    """As of something that stands before the service."""
    server = day(at("batches.list", "server_error", code=502, html=True))
    page = server.http.get("/v1/batches")
    assert (page.status_code, page.headers["content-type"][:9]) == (502, "text/html")


def test_a_token_may_have_run_out(day: Day) -> None:
    """401, once."""
    server = day(at("models.list", "unauthenticated"))
    assert server.error("GET", "/v1/models")["status"] == "UNAUTHENTICATED"
    assert server.json("GET", "/v1/models")["models"]


@pytest.mark.parametrize("after", [False, True])
def test_answers_come_late(day: Day, after: bool) -> None:
    """By the seconds asked for at least."""
    server = day(at("models.list", "delay", seconds=0.3, after=after))
    assert server.http.get("/v1/models").elapsed.total_seconds() >= 0.3


def raw(server: Server, method: str, path: str, body: Any = None) -> tuple[bytes, bool]:
    """What comes on a connection of its own until it ends, and whether a reset ended it."""
    content = b"" if body is None else orjson.dumps(body)
    url = httpx2.URL(server.url)
    with socket.create_connection((url.host, url.port or 0), timeout=20) as made:
        made.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        got = b""
        try:
            while piece := made.recv(65536):
                got += piece
        except ConnectionResetError:
            return got, True
        return got, False


@pytest.mark.parametrize(("kind", "made"), [("reset_before", 0), ("reset_after", 1)])
def test_a_create_may_lose_its_answer(day: Day, kind: str, made: int) -> None:
    """A TCP reset without a byte; the batch exists or not, for sure, and is then computed."""
    server = day(at("batches.create", kind))
    assert raw(server, "POST", CREATE, BODY) == (b"", True)
    listed = server.json("GET", "/v1/batches").get("operations", [])
    assert len(listed) == made
    for one in listed:
        assert server.ended(one["name"])["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert server.json("GET", "/v1/models")


def test_creates_are_matched_by_their_display_name(day: Day) -> None:
    """The others pass."""
    server = day(Fault("reset_before", {"route": "batches.create", "display_name": "unlucky*"}))
    server.inline("a", displayName="lucky")
    with pytest.raises(httpx2.TransportError):
        server.inline("a", displayName="unlucky 1")


@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_may_end_early(day: Day, reset: bool) -> None:
    """Just so many bytes of the body, then a reset or a plain close."""
    server = day(at("batches.get", "truncate", None, at_byte=100, reset=reset))
    name = server.inline("a")
    got, was_reset = raw(server, "GET", f"/v1/{name}")
    head, _, body = got.partition(b"\r\n\r\n")
    assert (len(body), was_reset) == (100, reset)
    assert int(httpx2.Headers(
        [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    )["content-length"]) > 100  # fmt: skip


def test_a_long_answer_is_cut_at_its_very_byte(day: Day) -> None:
    """What was sent before the reset arrives, also beyond the buffers."""
    server = day(at("batches.get", "truncate", None, at_byte=3_000_000))
    name = server.inline(*(f"t{n}" for n in range(9000)))
    server.service.weather._board.clear()  # type: ignore[attr-defined]
    server.ended(name)
    server.service.weather._board.add(at("batches.get", "truncate", at_byte=3_000_000))  # type: ignore[attr-defined]
    got, was_reset = raw(server, "GET", f"/v1/{name}")
    assert was_reset
    assert len(got.partition(b"\r\n\r\n")[2]) == 3_000_000


def test_an_answer_may_trickle(day: Day) -> None:
    """Whole in the end, and slow."""
    server = day(at("models.list", "trickle", bytes=100, pause_s=0.05))
    answer = server.http.get("/v1/models")
    assert answer.json()["models"]
    assert answer.elapsed.total_seconds() >= 0.05 * (len(answer.content) // 100)


def begun(server: Server, size: int) -> str:
    answer = server.http.post(
        "/upload/v1beta/files",
        json={"file": {"display_name": "d"}},
        headers={
            "X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
        },
    )  # fmt: skip
    return str(answer.headers["x-goog-upload-url"])


def send(server: Server, url: str, piece: bytes, offset: int) -> httpx2.Response:
    headers = {"X-Goog-Upload-Offset": str(offset), "X-Goog-Upload-Command": "upload, finalize"}
    return server.http.post(url, content=piece, headers=headers)


def received(server: Server, url: str) -> int:
    answer = server.http.post(url, headers={"X-Goog-Upload-Command": "query"})
    return int(answer.headers["x-goog-upload-size-received"])


@pytest.mark.parametrize(("keep", "kept"), [(True, 70_001), (False, 0)])
def test_an_upload_may_break_within(day: Day, keep: bool, kept: int) -> None:
    """At that very byte; what came is kept or forgotten, and the upload can go on."""
    server = day(at("files.upload", "upload_drop", at_byte=70_001, keep=keep))
    content = keyed(*(f"t{n}" for n in range(3000)))
    url = begun(server, len(content))
    with pytest.raises(httpx2.TransportError):
        send(server, url, content, 0)
    assert received(server, url) == kept
    file = send(server, url, content[kept:], kept).json()["file"]
    assert file["sizeBytes"] == str(len(content))
    operation = server.ended(server.create({"inputConfig": {"fileName": file["name"]}}))
    assert operation["metadata"]["batchStats"]["successfulRequestCount"] == "3000"


def test_the_answer_to_an_upload_may_be_lost(day: Day) -> None:
    """The file is there: a query tells it."""
    server = day(at("files.upload", "upload_answer_lost"))
    url = begun(server, 9)
    with pytest.raises(httpx2.TransportError):
        send(server, url, b"123456789", 0)
    answer = server.http.post(url, headers={"X-Goog-Upload-Command": "query"})
    assert answer.headers["x-goog-upload-status"] == "final"
    assert len(server.json("GET", "/v1/files")["files"]) == 1


def test_files_vanish(day: Day) -> None:
    """403 for get, create, and result files, as the real one."""
    server = day(Fault("file_vanished", {"route": "files.get"}, times=1),
                 Fault("file_vanished", {"route": "batches.create"}, times=1),
                 Fault("file_vanished", {"route": "files.download"}, times=1))  # fmt: skip
    name = server.upload(keyed("a"))
    assert server.error("GET", f"/v1/{name}")["status"] == "PERMISSION_DENIED"
    source = {"batch": {"inputConfig": {"fileName": name}}}
    assert server.error("POST", CREATE, source)["status"] == "PERMISSION_DENIED"
    result = server.ended(server.create(source["batch"]))["response"]["responsesFile"]
    path = f"/v1/{result}:download?alt=media"
    assert server.error("GET", path)["status"] == "PERMISSION_DENIED"
    assert server.http.get(path).status_code == 200


def test_a_new_file_may_be_processing(day: Day) -> None:
    """It says so, and no batch can use it yet."""
    server = day(Fault("file_processing", times=1, args={"seconds": 3600}))
    name = server.upload(keyed("a"))
    assert server.json("GET", f"/v1/{name}")["state"] == "PROCESSING"
    assert server.json("GET", "/v1/files")["files"][0]["state"] == "PROCESSING"
    refused = server.error("POST", CREATE, {"batch": {"inputConfig": {"fileName": name}}})
    assert "ACTIVE" in refused["message"]
    assert server.json("GET", f"/v1/{server.upload(keyed('b'))}")["state"] == "ACTIVE"


def test_results_may_be_late_and_ranges_odd(day: Day) -> None:
    """404 at first; a Range that is ignored, and one answered in part."""
    server = day(Fault("result_late", times=1, args={"seconds": 3600}),
                 at("files.download", "range_ignored"),
                 at("files.download", "range_short", None, bytes=10))  # fmt: skip
    name = server.create({"inputConfig": {"fileName": server.upload(keyed("a", "b"))}})
    path = f"/v1/{server.ended(name)['response']['responsesFile']}:download?alt=media"
    assert server.http.get(path).status_code == 404
    whole = server.http.get(path, headers={"Range": "bytes=5-"})
    assert whole.status_code == 200
    part = server.http.get(path, headers={"Range": "bytes=5-"})
    assert (part.status_code, part.content) == (206, whole.content[5:15])
    assert server.http.get(path, headers={"Range": "bytes=5-99"}).content == whole.content[5:100]


def walk(server: Server, path: str, kind: str, size: str = "") -> list[list[str]]:
    """Names on each page of a list."""
    pages, token = [], ""
    while True:
        query = httpx2.QueryParams({"pageToken": token, "pageSize": size})
        page = server.json("GET", f"{path}?{query}")
        pages.append([one["name"] for one in page.get(kind, [])])
        token = page.get("nextPageToken", "")
        if not token:
            return pages


@pytest.mark.parametrize("size", ["", "5"])
def test_pages_are_small_or_empty(day: Day, size: str) -> None:
    """Every entry comes all the same, once and in order."""
    server = day(Fault("small_pages", args={"size": 2}), Fault("empty_pages"))
    names = [server.inline(f"t{n}") for n in range(5)][::-1]
    pages = walk(server, "/v1/batches", "operations", size)
    assert pages == [[], names[:2], [], names[2:4], [], names[4:]]
    models = walk(server, "/v1/models", "models", size)
    assert [len(page) for page in models] == [0, 2, 0, 2, 0, 1]
    server.upload(b"x")
    assert [len(page) for page in walk(server, "/v1/files", "files", size)] == [0, 1]


def test_the_list_is_odd(day: Day) -> None:
    """Late, stale, with jobs of others behind the last one."""
    server = day(Fault("listing_delay", {"display_name": "late"}, args={"seconds": 3600}),
                 Fault("stale_stats"), Fault("foreign_jobs", args={"count": 2}))  # fmt: skip
    name = server.inline("a", "b")
    late = server.inline("a", displayName="late")
    server.ended(name)
    server.ended(late)
    shown = server.json("GET", "/v1/batches")["operations"]
    assert [one["metadata"]["displayName"] for one in shown[1:]] == ["others-1", "others-2"]
    assert "GenerateContentBatch" in shown[1]["metadata"]["@type"]
    assert shown[0]["name"] == name
    assert shown[0]["metadata"]["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}


def test_hidden_batches_leave_no_empty_page(day: Day) -> None:
    """The page is filled from what stands behind them."""
    server = day(Fault("listing_delay", {"display_name": "late"}, args={"seconds": 3600}))
    seen = [server.inline("a") for _ in range(3)][::-1]
    for _ in range(4):
        server.inline("a", displayName="late")
    assert walk(server, "/v1/batches", "operations", "2") == [seen[:2], seen[2:]]


def test_ceilings_hold_until_a_batch_has_ended(day: Day) -> None:
    """Of jobs and of tokens: 429 beyond; a batch that ends makes room."""
    server = day(Fault("job_ceiling", args={"jobs": 1}),
                 Fault("job_stuck", {"display_name": "stuck"}))  # fmt: skip
    name = server.inline("a", displayName="stuck")
    assert server.error("POST", CREATE, BODY)["status"] == "RESOURCE_EXHAUSTED"
    server.json("POST", f"/v1/{name}:cancel")
    server.ended(name)
    server.ended(server.inline("a"))


def test_tokens_are_counted_against_a_ceiling(day: Day) -> None:
    """Those of a model's unfinished batches and of the new one."""
    server = day(Fault("token_ceiling", args={"tokens": 100}),
                 Fault("job_stuck", {"display_name": "stuck"}))  # fmt: skip
    assert server.http.post(CREATE, json={
        "batch": {"inputConfig": {"requests": {"requests": rows("w " * 99)}}}
    }).status_code == 429  # fmt: skip
    server.inline("w " * 60, displayName="stuck")
    with pytest.raises(AssertionError, match="RESOURCE_EXHAUSTED"):
        server.inline("w " * 60)
    server.inline("w " * 30)


def test_interactive_answers_are_odd(day: Day) -> None:
    """Too few vectors, no token counts, full length, long texts refused."""
    server = day(at("models.batchEmbedContents", "fewer_vectors"),
                 at("models.embedContent", "usage_missing"),
                 at("models.embedContent", "dims_ignored"),
                 Fault("over_long_refused"))  # fmt: skip
    requests = [{"model": f"models/{MODEL}", **CONTENT}] * 3
    path = f"/v1/models/{MODEL}:batchEmbedContents"
    assert len(server.json("POST", path, {"requests": requests})["embeddings"]) == 2
    one = server.json("POST", EMBED, {**CONTENT, "outputDimensionality": 4})
    assert len(one["embedding"]["values"]) == DIMS
    assert "usageMetadata" not in one
    again = server.json("POST", EMBED, {**CONTENT, "outputDimensionality": 4})
    assert (len(again["embedding"]["values"]), "usageMetadata" in again) == (4, True)
    long = {"content": {"parts": [{"text": "w " * 1000}]}}
    assert "longer" in server.error("POST", EMBED, long)["message"]


def test_strikes_are_seen_and_texts_are_not(day: Day) -> None:
    """In /metrics and in the log, by kind and id."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("embatch.server"), Ear()
    before = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        server = day(Fault("rate_limited", {"display_name": "a secret name"}, id="mine"))
        with pytest.raises(AssertionError):
            server.inline("a secret text", displayName="a secret name")
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before)
    assert "simulated rate_limited (mine) at batches.create" in heard
    assert "secret" not in "".join(heard)
    page = server.http.get("/metrics").text
    assert 'embatch_serve_faults_struck_total{fault="mine",kind="rate_limited"} 1.0' in page
    assert "secret" not in page


def test_health_and_metrics_are_spared(day: Day) -> None:
    """A fault for everything does not hide how the server does."""
    server = day(Fault("server_error"))
    assert server.error("GET", "/v1/models")["code"] == 503
    assert server.json("GET", "/healthz")["status"] == "ok"
    assert server.http.get("/metrics").status_code == 200


def test_a_client_that_resets_harms_nothing(day: Day) -> None:
    """It goes away inside a trickling answer."""
    server = day(Fault("trickle", args={"bytes": 1, "pause_s": 0.01}))
    url = httpx2.URL(server.url)
    with socket.create_connection((url.host, url.port or 0), timeout=20) as made:
        made.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert made.recv(100)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.json("GET", "/healthz")["status"] == "ok"
