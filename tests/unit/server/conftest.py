"""Servers on real sockets, over the fake engine."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from embatch.config import Secret
from embatch.server.models import Catalogue
from embatch.server.run import serving
from embatch.server.service import Service
from embatch.server.settings import ServerSettings
from embatch.testing import FakeEngine

DIMS = 16
MODEL = "gemini-embedding-001"
ENDED = {"BATCH_STATE_SUCCEEDED", "BATCH_STATE_FAILED", "BATCH_STATE_CANCELLED"}


class Server:
    """A running server, its inside, and short ways to call it."""

    stop: Callable[[], None]

    def __init__(self, url: str, service: Service, engine: FakeEngine) -> None:
        self.url = url
        self.service = service
        self.engine = engine
        self.http = httpx2.Client(base_url=url, timeout=20.0)

    def json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of a call that succeeds."""
        answer = self.http.request(method, path, json=body, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def error(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The error of a call that is refused, as the body and the status agree on it."""
        answer = self.http.request(method, path, json=body, **more)
        error = answer.json()["error"]
        assert error["code"] == answer.status_code
        return error

    def create(self, batch: dict[str, Any]) -> str:
        """The name of a new batch."""
        made = self.json("POST", f"/v1/models/{MODEL}:asyncBatchEmbedContent", {"batch": batch})
        return str(made["name"])

    def inline(self, *texts: str, **more: Any) -> str:
        """The name of a new batch of texts."""
        return self.create({"inputConfig": {"requests": {"requests": rows(*texts)}}, **more})

    def ended(self, name: str) -> Any:
        """The Operation of a batch, once it has ended."""
        deadline = time.monotonic() + 20
        while True:
            shown = self.json("GET", f"/v1/{name}")
            if shown["metadata"]["state"] in ENDED:
                return shown
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def upload(self, content: bytes, **file: Any) -> str:
        """The name of a new file."""
        begun = self.http.post(
            "/upload/v1beta/files",
            json={"file": file},
            headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
        )
        done = self.http.post(
            begun.headers["x-goog-upload-url"],
            content=content,
            headers={"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"},
        )
        assert done.status_code == 200, done.text
        return str(done.json()["file"]["name"])


def rows(*texts: str, **request: Any) -> list[dict[str, Any]]:
    """Inline rows of texts."""
    return [{"request": {"content": {"parts": [{"text": text}]}, **request}} for text in texts]


def jsonl(*values: Any) -> bytes:
    """Lines of JSON."""
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def keyed(*texts: str, **request: Any) -> bytes:
    """A batch file of texts, with keys."""
    return jsonl(*({"key": f"k{n}", **row} for n, row in enumerate(rows(*texts, **request))))


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers over one folder; they end with the test, or by `stop`."""
    with ExitStack() as stack:

        def started(
            *,
            engine: FakeEngine | None = None,
            api_key: str | None = None,
            weather: Any = None,
            **settings: Any,
        ) -> Server:
            engine = engine or FakeEngine(DIMS, poison="POISON", prompts={"retrieval_query": "q: "})
            service = Service(
                ServerSettings(
                    folder=tmp_path / "data", api_key=api_key and Secret(api_key), **settings
                ),
                Catalogue({engine.model: engine}, {}),
                weather=weather,
            )
            own = stack.enter_context(ExitStack())
            server = Server(own.enter_context(serving(service)), service, engine)
            own.callback(server.http.close)
            server.stop = own.close
            return server

        yield started


@pytest.fixture
def server(start: Start) -> Server:
    """A server with the limits of the real service."""
    return start()
