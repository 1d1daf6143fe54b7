"""`embatch serve` as a process, on a free port of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson

from embatch.testing import FakeEngine
from embatch.types.results import Matrix
from embatch.vectors import truncate

SLOW_SERVE = Path(__file__).with_name("slow_serve.py")
MODEL = "gemini-embedding-001"
DIMS = 384
"""What the fake engine has."""
STOP_S = 30.0
DEADLINE_S = 120.0


def truth(texts: Sequence[str], dims: int = DIMS) -> Matrix:
    """The vectors that the server must have given: the fake engine's, cut."""
    full = FakeEngine(DIMS).expected(texts)
    return full if dims == DIMS else truncate(full, dims)


def jsonl(texts: Sequence[str], **config: Any) -> bytes:
    """A batch's input file: a line a text, keyed k0, k1, …"""
    return b"".join(
        orjson.dumps(
            {"key": f"k{n}", "request": {"content": {"parts": [{"text": text}]}, **config}}
        )
        + b"\n"
        for n, text in enumerate(texts)
    )


def assert_whole(lines: Sequence[bytes], texts: Sequence[str]) -> None:
    """Every row once, in the order of its file, with the very vector of its text."""
    rows = [orjson.loads(line) for line in lines]
    assert [row["key"] for row in rows] == [f"k{n}" for n in range(len(texts))]
    vectors = np.array([row["response"]["embedding"]["values"] for row in rows], dtype=np.float32)
    assert vectors.tobytes() == truth(texts).tobytes()


class Api:
    """The protocol as bare calls: every answer but 200 is an AssertionError."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"x-goog-api-key": key} if key else {}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=60)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of one answer."""
        answer = self.http.request(method, path, **options)
        assert answer.status_code == 200, answer.text[:2000]
        return orjson.loads(answer.content)

    def start_upload(self, size: int, name: str = "rows") -> str:
        """The URL that the bytes of a new file go to."""
        answer = self.http.post(
            "/upload/v1beta/files",
            json={"file": {"display_name": name}},
            headers={
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": str(size),
                "X-Goog-Upload-Header-Content-Type": "application/jsonl",
            },
        )
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-goog-upload-url"])

    def send(
        self, url: str, piece: bytes, offset: int, command: str = "upload, finalize"
    ) -> httpx2.Response:
        """The answer to one piece of an upload."""
        headers = {"X-Goog-Upload-Offset": str(offset), "X-Goog-Upload-Command": command}
        return self.http.post(url, content=piece, headers=headers)

    def upload(self, content: bytes, name: str = "rows") -> str:
        """The name of a new file."""
        answer = self.send(self.start_upload(len(content), name), content, 0)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["file"]["name"])

    def create(self, source: dict[str, Any], **batch: Any) -> str:
        """The name of a new batch over `source`, an `inputConfig`."""
        found = self.call(
            "POST",
            f"/v1beta/models/{MODEL}:asyncBatchEmbedContent",
            json={"batch": {"inputConfig": source, **batch}},
        )
        return str(found["name"])

    def create_from(self, content: bytes, **batch: Any) -> str:
        """The name of a new batch over a new file."""
        return self.create({"fileName": self.upload(content)}, **batch)

    def poll(self, name: str) -> dict[str, Any]:
        """The batch's operation, now."""
        found: dict[str, Any] = self.call("GET", f"/v1beta/{name}")
        return found

    def served(self, name: str) -> int:
        """How many rows of a batch are done."""
        stats = self.poll(name)["metadata"]["batchStats"]
        return int(stats["requestCount"]) - int(stats.get("pendingRequestCount", 0))

    def finished(self, name: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The batch's operation at its end."""
        eventually(lambda: bool(self.poll(name).get("done")), timeout_s)
        return self.poll(name)

    def results(self, operation: dict[str, Any]) -> list[bytes]:
        """The lines of a finished batch's result file."""
        file = operation["response"]["responsesFile"]
        answer = self.http.get(f"/download/v1beta/{file}:download", params={"alt": "media"})
        assert answer.status_code == 200, answer.text[:2000]
        return answer.content.splitlines()


def eventually(
    condition: Callable[[], bool], timeout_s: float = DEADLINE_S, every_s: float = 0.02
) -> None:
    """Waits until `condition` holds; fails the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(every_s)


@dataclass(kw_only=True)
class Server:
    """A running `embatch serve`."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log: Path
    key: str | None = None
    api: Api = field(init=False)

    def __post_init__(self) -> None:
        self.api = Api(self.url, self.key)

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.ready["url"])

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """kill -9, and waits for its end."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(STOP_S) == -signal.SIGKILL

    def stop(self) -> int:
        """Asks it to end, as systemd does; gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def memory_bytes(self) -> int:
        """What the process holds resident, now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def said(self) -> str:
        """Its standard error so far."""
        return self.log.read_text()

    def assert_unbroken(self) -> None:
        """It runs, and nothing in it raised what it did not expect."""
        assert self.process.poll() is None
        said = self.said()
        assert " error embatch" not in said, said[-4000:]
        assert "Traceback" not in said, said[-4000:]


class Servers:
    """Starts servers, and ends those that still run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed_log = folder / "computed.log"
        """A line for each call of a slow engine: the number of its rows."""
        self._started: list[subprocess.Popen[str]] = []
        self._running: list[Server] = []

    def start(
        self,
        *arguments: str,
        data: str = "data",
        port: int = 0,
        row_s: float | None = None,
        kill_at: str = "-",
        engine: str = "fake",
        key: str | None = None,
    ) -> Server:
        """A server that accepts connections, over the data folder of that name."""
        script = ["-m", "embatch", "serve"]
        if row_s is not None or kill_at != "-":
            script = [str(SLOW_SERVE), str(row_s or 0.0), str(self.computed_log), kill_at]
        command = [
            *(sys.executable, *script, "--json", "--port", str(port), "--engine", engine),
            *("--data", str(self.folder / data), *arguments),
        ]
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "EMBATCH_HOME": str(self.folder / "home"),
            "HF_HUB_OFFLINE": "1",
        }
        if key:
            environ["EMBATCH_SERVE_API_KEY"] = key
        log = self.folder / f"serve-{len(self._started)}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self._started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait(STOP_S)}: {log.read_text()}"
        server = Server(process=process, ready=json.loads(line), log=log, key=key)
        self._running.append(server)
        return server

    def close(self) -> None:
        """Ends them all."""
        for server in self._running:
            server.api.http.close()
        for process in self._started:
            process.kill()
            process.communicate()
