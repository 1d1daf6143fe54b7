"""Uploads of the Files API: resumable in chunks, and multipart in one go."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.testing.cloud.answers import (
    Answer,
    ApiError,
    ClientGoneError,
    Request,
    field_of,
    json_answer,
)
from embatch.testing.cloud.core import VERSION, Core, route
from embatch.testing.cloud.doors import drop_within
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.files import check_new_name, file_json, keep_file
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.web import BreakConnectionError
from embatch.testing.cloud.words import made_id

GRANULARITY_BYTES: Final = 8 << 20
_MOST_BYTES: Final = 2 << 30
_UPLOAD_ID_CHARS: Final = 40
_HEAD_BYTES: Final = 1 << 16
_STATUS: Final = "x-goog-upload-status"


def _begin(core: Core, request: Request) -> Answer:
    if request.query.get("upload_id"):
        return _continue(core, request)
    protocol = request.headers.get("X-Goog-Upload-Protocol", request.query.get("uploadType", ""))
    core.strike_before()
    core.authorise(request)
    if protocol == "multipart":
        return _multipart(core, request)
    command = request.headers.get("X-Goog-Upload-Command", "")
    if protocol != "resumable" or command != "start":
        raise ApiError(400, "Upload protocol is resumable (command start) or multipart.")
    asked = field_of(request.json(), "file", {})
    declared = request.headers.get("X-Goog-Upload-Header-Content-Length")
    if declared is not None and int(declared) > _MOST_BYTES:
        raise ApiError(400, "File is larger than 2 GiB.")
    name = field_of(asked, "name")
    if name:
        check_new_name(core, name)
    number = core.store.next_number("upload")
    upload_id = made_id(core.settings.seed, "upload", number, _UPLOAD_ID_CHARS)
    path = core.store.folder / "uploads" / upload_id
    path.touch()
    core.store.put(
        "upload",
        upload_id,
        {
            "id": upload_id,
            "name": name,
            "declared": None if declared is None else int(declared),
            "mime_type": request.headers.get("X-Goog-Upload-Header-Content-Type")
            or str(field_of(asked, "mimeType", "")),
            "display_name": str(field_of(asked, "displayName", "")),
            "state": "active",
            "file": None,
        },
    )
    url = f"{core.url}/upload/v1beta/files?upload_id={upload_id}&upload_protocol=resumable"
    return Answer(
        200,
        {
            "Content-Type": "text/plain; charset=utf-8",
            "x-goog-upload-url": url,
            "x-goog-upload-control-url": url,
            _STATUS: "active",
            "x-goog-upload-chunk-granularity": str(GRANULARITY_BYTES),
        },
    )


def _continue(core: Core, request: Request) -> Answer:
    upload_id = request.query["upload_id"]
    upload = core.store.get("upload", upload_id)
    if upload is None:
        raise ApiError(404, "No such upload.", headers={_STATUS: "cancelled"})
    core.door.facts.update(display_name=upload["display_name"])
    words = {word.strip() for word in request.headers.get("X-Goog-Upload-Command", "").split(",")}
    label = "query" if "query" in words else "cancel" if "cancel" in words else "upload"
    core.relabel(f"files.{label}")
    core.strike_before()
    with core.lock_of(upload_id):
        upload = core.store.get("upload", upload_id) or upload
        if label == "query":
            return _progress(core, upload)
        if label == "cancel":
            core.store.put("upload", upload_id, {**upload, "state": "cancelled"})
            return Answer(200, {_STATUS: "cancelled"})
        return _take_chunk(core, request, upload, final="finalize" in words)


def _progress(core: Core, upload: Doc) -> Answer:
    if upload["state"] == "final":
        return _final(core, upload)
    size = _bytes_path(core, upload).stat().st_size if upload["state"] == "active" else 0
    return Answer(
        200,
        {
            _STATUS: upload["state"],
            "x-goog-upload-size-received": str(size),
            "x-goog-upload-chunk-granularity": str(GRANULARITY_BYTES),
        },
    )


def _final(core: Core, upload: Doc) -> Answer:
    doc = core.store.get("file", upload["file"])
    shown = {"file": file_json(core, doc)} if doc else {}
    size = str(doc["size_bytes"]) if doc else "0"
    return json_answer(shown, 200, {_STATUS: "final", "x-goog-upload-size-received": size})


def _take_chunk(core: Core, request: Request, upload: Doc, *, final: bool) -> Answer:
    if upload["state"] != "active":
        raise ApiError(400, "Upload has already ended.", headers={_STATUS: upload["state"]})
    path = _bytes_path(core, upload)
    received = path.stat().st_size
    headers = {_STATUS: "active", "x-goog-upload-size-received": str(received)}
    if request.headers.get("X-Goog-Upload-Offset") != str(received):
        message = f"X-Goog-Upload-Offset must be {received}, the bytes received so far."
        raise ApiError(400, message, headers=headers)
    _store_chunk(core, request, path, received)
    size = path.stat().st_size
    declared = upload["declared"]
    wrong = None
    if not final and (size - received) % GRANULARITY_BYTES:
        wrong = f"A chunk that is not the last must be a multiple of {GRANULARITY_BYTES} bytes."
    elif size > (_MOST_BYTES if declared is None else declared):
        wrong = "More bytes than announced."
    elif final and declared is not None and size != declared:
        wrong = f"Finalized at {size} bytes, but {declared} were announced."
    if wrong:
        _forget_after(path, received)
        raise ApiError(400, wrong, headers=headers)
    if final:
        upload = _finish(core, upload, path)
    if core.board.strike(FaultKind.UPLOAD_ANSWER_LOST, core.door.facts):
        raise BreakConnectionError
    if final:
        return _final(core, upload)
    return Answer(200, {_STATUS: "active", "x-goog-upload-size-received": str(size)})


def _store_chunk(core: Core, request: Request, path: Path, received: int) -> None:
    at = received
    with path.open("ab") as file:
        try:
            for piece in request.body.pieces():
                dropped = drop_within(core.board, core.door.facts, at, len(piece))
                if dropped is None:
                    file.write(piece)
                    at += len(piece)
                    continue
                fault, byte = dropped
                file.write(piece[: byte - at])
                file.flush()
                if not fault.arg("keep"):
                    _forget_after(path, received)
                raise BreakConnectionError
        except (ClientGoneError, ConnectionError):
            file.flush()
            raise


def _forget_after(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


def _finish(core: Core, upload: Doc, path: Path) -> Doc:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    doc = keep_file(
        core,
        check_new_name(core, upload["name"]),
        path,
        mime_type=upload["mime_type"],
        display_name=upload["display_name"],
        sha256=sha256,
    )
    upload.update(state="final", file=doc["id"])
    core.store.put("upload", upload["id"], upload)
    return upload


def _multipart(core: Core, request: Request) -> Answer:
    caught = re.search(r'boundary="?([^";]+)"?', request.headers.get("Content-Type", ""))
    if caught is None:
        raise ApiError(400, "multipart/related with a boundary is required.")
    boundary = b"--" + caught[1].encode()
    raw = core.store.new_path("uploads")
    with raw.open("wb") as file:
        for piece in request.body.pieces():
            file.write(piece)
    try:
        asked, mime_type, start, end = _parts(raw, boundary)
        body = core.store.new_path("uploads")
        with raw.open("rb") as source, body.open("wb") as target:
            source.seek(start)
            shutil.copyfileobj(source, target, 1 << 20)
            target.truncate(end - start)
    finally:
        raw.unlink()
    with body.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = field_of(asked, "file", {})
    doc = keep_file(
        core,
        check_new_name(core, field_of(wanted, "name")),
        body,
        mime_type=str(field_of(wanted, "mimeType", mime_type)),
        display_name=str(field_of(wanted, "displayName", "")),
        sha256=sha256,
    )
    return json_answer({"file": file_json(core, doc)})


def _parts(raw: Path, boundary: bytes) -> tuple[Any, str, int, int]:
    """The JSON part, the second part's type, and where its bytes begin and end."""
    size = raw.stat().st_size
    with raw.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, size - _HEAD_BYTES))
        tail = file.read()
    first = head.find(boundary)
    second = head.find(boundary, first + 1)
    json_at = head.find(b"\r\n\r\n", first)
    bytes_at = head.find(b"\r\n\r\n", second)
    last = tail.rfind(b"\r\n" + boundary + b"--")
    if min(first, second, json_at, bytes_at, last) < 0:
        raise ApiError(400, "Two parts are required: JSON, then bytes.")
    kind = re.search(rb"content-type:\s*([^\r\n]+)", head[second:bytes_at], re.IGNORECASE)
    try:
        asked = orjson.loads(head[json_at + 4 : second].strip() or b"{}")
    except orjson.JSONDecodeError:
        raise ApiError(400, "The first part is not JSON.") from None
    end = max(0, size - _HEAD_BYTES) + last
    return asked, kind[1].decode("latin-1") if kind else "", bytes_at + 4, end


def _bytes_path(core: Core, upload: Doc) -> Path:
    path: Path = core.store.folder / "uploads" / upload["id"]
    return path


_UPLOAD = "/upload" + VERSION + "/files"
ROUTES: Final = tuple(
    # An upload's own URL needs no key: its id is the secret.
    route(method, _UPLOAD, "files.start", _begin, "gemini", keyless=True, reads_first=True)
    for method in ("POST", "PUT")
)
