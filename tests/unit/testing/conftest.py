"""A bare wire to the fake cloud: what a client would send, sent by hand."""

import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson
import pytest

from embatch.testing.cloud import FakeCloud

MODEL = "gemini-embedding-001"


@dataclass
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Wire:
    """Sends requests to one cloud."""

    def __init__(self, cloud: FakeCloud) -> None:
        self.cloud = cloud

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Reply:
        """`key` "" is the cloud's own, None sends none; a body that is not bytes goes as JSON."""
        sent = dict(headers or {})
        if key is not None and "Authorization" not in sent:
            sent["x-goog-api-key"] = key or self.cloud.api_key
        if body is not None and not isinstance(body, bytes):
            body = orjson.dumps(body)
        if query:
            path += "?" + urlencode(query)
        connection = http.client.HTTPConnection(urlsplit(self.cloud.url).netloc, timeout=20)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Reply:
        return self.send("GET", path, **query)

    def post(self, path: str, body: Any = None, **query: Any) -> Reply:
        return self.send("POST", path, body, **query)

    def upload(self, rows: bytes, *, name: str | None = None) -> str:
        """Uploads a JSONL file in one chunk and gives its name."""
        start = self.send(
            "POST",
            "/upload/v1beta/files",
            {"file": {"name": name} if name else {}},
            headers={
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": str(len(rows)),
                "X-Goog-Upload-Header-Content-Type": "application/jsonl",
            },
        )
        place = start.headers["x-goog-upload-url"].removeprefix(self.cloud.url)
        done = self.chunk(place, 0, rows, final=True)
        return str(done.json["file"]["name"])

    def chunk(self, place: str, offset: int, piece: bytes, *, final: bool = False) -> Reply:
        """Sends one chunk of a resumable upload."""
        command = "upload, finalize" if final else "upload"
        headers = {"X-Goog-Upload-Offset": str(offset), "X-Goog-Upload-Command": command}
        return self.send("POST", place, piece, key=None, headers=headers)

    def create(
        self,
        texts: list[str] | None = None,
        *,
        rows: bytes | None = None,
        inline: bool = False,
        dims: int = 128,
        name: str = "job",
        model: str = MODEL,
        **batch: Any,
    ) -> Reply:
        """Creates a batch of these texts with keys k0, k1, …"""
        listed = [
            {"request": {"content": {"parts": [{"text": text}]}, "outputDimensionality": dims}}
            for text in texts or []
        ]
        if inline:
            for at, row in enumerate(listed):
                row["metadata"] = {"key": f"k{at}"}
            config: dict[str, Any] = {"requests": {"requests": listed}}
        else:
            if rows is None:
                rows = b"".join(
                    orjson.dumps({"key": f"k{at}", **row}) + b"\n" for at, row in enumerate(listed)
                )
            config = {"file_name": self.upload(rows)}
        body = {"batch": {"displayName": name, "inputConfig": config, **batch}}
        return self.post(f"/v1beta/models/{model}:asyncBatchEmbedContent", body)

    def finished(self, texts: list[str], **asked: Any) -> Any:
        """Creates a batch, brings it to its end, and gives the operation."""
        name = self.create(texts, **asked).json["name"]
        self.cloud.finish(name)
        return self.get(f"/v1beta/{name}").json

    def lines(self, operation: Any) -> list[bytes]:
        """The lines of a finished batch's result file."""
        name = operation["response"]["responsesFile"]
        answer = self.get(f"/download/v1beta/{name}:download", alt="media")
        assert answer.status == 200, answer.body
        return answer.body.splitlines()

    def results(self, texts: list[str], **asked: Any) -> list[Any]:
        """The result rows of a batch of these texts."""
        return [orjson.loads(line) for line in self.lines(self.finished(texts, **asked))]


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    """A cloud whose clock stands."""
    with FakeCloud(manual_clock=True, seed=7) as running:
        yield running


@pytest.fixture
def wire(cloud: FakeCloud) -> Wire:
    """A bare wire to `cloud`."""
    return Wire(cloud)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is true, at most 10 seconds."""

    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not true():
            assert time.monotonic() < deadline, "it did not come true within 10 s"
            time.sleep(0.005)

    return wait
