"""A Gemini API whose results were made beforehand: it serves what the clients' work is made of.

    python -m benchmarks.cloud_service DIMS

prints one JSON line with its URL and listens on 127.0.0.1 until its input ends. Texts begin with
their row's number; row `n` has the prepared vector `n % VECTORS`. A batch is done when it is
created: nothing is computed, parsed or written while clients are measured but the keys and numbers
of the rows that came.
"""

import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np

VECTORS = 2_048
"""Different vectors that are served, in turn."""
DECIMALS = 9
_LINES = re.compile(rb'\{"key": ?"([^"]*)".*?"text": ?"(\d+)')
_PARTS_AT_ONCE = 1_000
"""Buffers of one system call; Linux takes 1,024."""
_NOW = "2026-11-01T10:00:00Z"


def prepared_vectors(dims: int) -> np.ndarray:
    """What is served, float32 `[VECTORS, dims]`: not of length 1, as short vectors come."""
    rows = np.random.default_rng(7).normal(scale=0.02, size=(VECTORS, dims))
    return np.round(rows, DECIMALS).astype(np.float32)


def _rendered(dims: int) -> list[bytes]:
    rows = np.random.default_rng(7).normal(scale=0.02, size=(VECTORS, dims))
    return [
        b'"response":{"embedding":{"values":[%b]},"usageMetadata":{"promptTokenCount":12}}}\n'
        % ",".join(f"{value:.{DECIMALS}f}" for value in row).encode()
        for row in rows.tolist()
    ]


@dataclass(slots=True)
class Batch:
    """A finished batch: what its result file is made of."""

    document: dict[str, object]
    parts: list[bytes]
    size_bytes: int


@dataclass(slots=True)
class Service:
    """What was uploaded and created."""

    responses: list[bytes]
    """The second half of each result row."""
    uploads: dict[str, bytearray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded and not created from yet."""
    batches: dict[str, Batch] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def create(self, display_name: str, file_name: str) -> dict[str, object]:
        """A batch of the rows of an uploaded file, done at once."""
        parts: list[bytes] = []
        for key, row in _LINES.findall(self.files.pop(file_name)):
            parts += [b'{"key":"%b",' % key, self.responses[int(row) % VECTORS]]
        rows, name = len(parts) // 2, f"batches/{secrets.token_hex(12)}"
        output = {"responsesFile": name.replace("batches/", "files/batch-")}
        metadata = {
            "model": "models/gemini-embedding-001",
            "displayName": display_name,
            "state": "BATCH_STATE_SUCCEEDED",
            "createTime": _NOW,
            "updateTime": _NOW,
            "endTime": _NOW,
            "inputConfig": {"fileName": file_name},
            "batchStats": {"requestCount": str(rows), "successfulRequestCount": str(rows)},
            "output": output,
            "name": name,
        }
        document = {"name": name, "done": True, "metadata": metadata, "response": output}
        with self.lock:
            self.batches[name] = Batch(document, parts, sum(map(len, parts)))
        return document


class Exchange(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_POST(self) -> None:
        """Uploads and creates."""
        url, service = urlsplit(self.path), self.server.service
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if url.path.startswith("/upload/"):
            self._upload(parse_qs(url.query), body)
        elif url.path.endswith(":asyncBatchEmbedContent"):
            batch = json.loads(body)["batch"]
            source = batch.get("inputConfig") or batch["input_config"]
            file_name = source.get("fileName") or source["file_name"]
            name = batch.get("displayName") or batch.get("display_name") or "unnamed"
            self._say(200, service.create(name, file_name))
        else:
            self._refuse()

    def _upload(self, query: dict[str, list[str]], body: bytes) -> None:
        service = self.server.service
        if "upload_id" not in query:
            upload_id, asked = secrets.token_hex(8), json.loads(body or b"{}").get("file", {})
            name = asked.get("name") or f"files/{upload_id}"
            service.uploads[upload_id] = bytearray()
            place = f"{self.server.url}/upload/v1beta/files?upload_id={upload_id}&name={name}"
            self._say(200, {}, {"x-goog-upload-url": place, "x-goog-upload-status": "active"})
            return
        upload_id, name = query["upload_id"][0], query["name"][0]
        service.uploads[upload_id] += body
        if "finalize" not in self.headers["x-goog-upload-command"]:
            self._say(200, {}, {"x-goog-upload-status": "active"})
            return
        service.files[name] = bytes(service.uploads.pop(upload_id))
        self._say(200, {"file": self._file(name)}, {"x-goog-upload-status": "final"})

    def _file(self, name: str) -> dict[str, object]:
        size = str(len(self.server.service.files[name]))
        times = {"createTime": _NOW, "updateTime": _NOW, "expirationTime": "2026-11-03T10:00:00Z"}
        return {"name": name, "sizeBytes": size, "state": "ACTIVE", **times}

    def do_GET(self) -> None:
        """Looks and downloads."""
        service, place = self.server.service, _place(self.path)
        if place.endswith(":download"):
            batch = service.batches[place.split(":")[0].replace("files/batch-", "batches/")]
            self._send_results(batch)
        elif place in service.batches:
            self._say(200, service.batches[place].document)
        elif place == "batches":
            self._say(200, {"operations": [one.document for one in service.batches.values()]})
        elif place in service.files:
            self._say(200, self._file(place))
        else:
            self._refuse()

    def do_DELETE(self) -> None:
        """Removes a file or a batch."""
        service, place = self.server.service, _place(self.path)
        with service.lock:
            found = service.files.pop(place, None) or service.batches.pop(place, None)
        if found is None:
            self._refuse()
        else:
            self._say(200, {})

    def _send_results(self, batch: Batch) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {batch.size_bytes}\r\n"
        self.connection.sendall(f"{head}content-type: application/jsonl\r\n\r\n".encode())
        for start in range(0, len(batch.parts), _PARTS_AT_ONCE):
            _send_all(self.connection, batch.parts[start : start + _PARTS_AT_ONCE])

    def _refuse(self) -> None:
        error = {"code": 404, "message": "Requested entity was not found.", "status": "NOT_FOUND"}
        self._say(404, {"error": error})

    def _say(
        self, status: int, document: dict[str, object], headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        sent = {"content-type": "application/json", "content-length": str(len(body))}
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing is logged."""


def _place(path: str) -> str:
    """What a path names, without the version of the API."""
    return urlsplit(path).path.lstrip("/").partition("/")[2]


def _send_all(connection: socket.socket, parts: Sequence[bytes]) -> None:
    sent = connection.sendmsg(parts)
    if sent < sum(map(len, parts)):
        connection.sendall(b"".join(parts)[sent:])


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, service: Service) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.service = service

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


def main() -> None:
    """Serves until standard input ends."""
    server = Server(Service(_rendered(int(sys.argv[1]))))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"url": server.url}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
