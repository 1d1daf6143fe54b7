"""The Files API: get, list, delete, download."""

import base64
import re
import shutil
from pathlib import Path
from typing import Any, Final

from embatch.testing.cloud.answers import Answer, ApiError, Request, file_answer, json_answer
from embatch.testing.cloud.clock import timestamp
from embatch.testing.cloud.core import VERSION, Core, route
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.pages import cut_page
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.words import FILE_ID_CHARS, made_id

FILE_LIFE_S: Final = 48 * 3600.0
_RESULT_LIFE_S: Final = 42 * 86400.0
_PAGE_DEFAULT: Final = 10
_PAGE_MOST: Final = 100
_ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
_RESULT_PREFIX: Final = "batch-"


def file_json(core: Core, doc: Doc) -> dict[str, Any]:
    """A File as the API shows it."""
    active = core.clock.now() >= doc["active_s"]
    shown = {
        "name": f"files/{doc['id']}",
        "displayName": doc["display_name"],
        "mimeType": doc["mime_type"],
        "sizeBytes": str(doc["size_bytes"]),
        "createTime": timestamp(doc["created_s"]),
        "updateTime": timestamp(doc["created_s"]),
        "expirationTime": timestamp(doc["created_s"] + FILE_LIFE_S),
        # The wire carries base64 of the hex digest's characters, not of the digest.
        "sha256Hash": base64.b64encode(doc["sha256"].encode()).decode(),
        "uri": f"{core.url}/v1beta/files/{doc['id']}",
        "state": "ACTIVE" if active else "PROCESSING",
        "source": "UPLOADED",
    }
    return {name: value for name, value in shown.items() if value != ""}


def check_new_name(core: Core, name: str | None) -> str:
    """The id for a new file: the one asked for, if it is allowed and free, or a made one."""
    if not name:
        number = core.store.next_number("file")
        return made_id(core.settings.seed, "file", number, FILE_ID_CHARS)
    file_id = str(name).removeprefix("files/")
    if not _ID.match(file_id):
        raise ApiError(400, "file.name: up to 40 characters a-z, 0-9 and inner dashes.")
    if core.store.get("file", file_id) is not None:
        raise ApiError(409, f"File {file_id} already exists.")
    return file_id


def keep_file(
    core: Core, file_id: str, source: Path, *, mime_type: str, display_name: str, sha256: str
) -> Doc:
    """Makes uploaded bytes a file."""
    path = core.store.new_path("files")
    now = core.clock.now()
    facts = {**core.door.facts, "file": file_id, "display_name": display_name}
    slow = core.board.strike(FaultKind.FILE_PROCESSING, facts)
    doc = {
        "id": file_id,
        "display_name": display_name,
        "mime_type": mime_type or "application/octet-stream",
        "size_bytes": source.stat().st_size,
        "created_s": now,
        "active_s": now + (float(slow.arg("seconds")) if slow else 0.0),
        "sha256": sha256,
        "path": str(path.relative_to(core.store.folder)),
    }
    shutil.move(source, path)
    core.store.put("file", file_id, doc)
    return doc


def find_file(core: Core, file_id: str) -> Doc:
    """A file that is there and not expired; else the 403 that Google gives."""
    vanished = core.board.strike(FaultKind.FILE_VANISHED, {**core.door.facts, "file": file_id})
    doc = core.store.get("file", file_id)
    if vanished or doc is None or core.clock.now() > doc["created_s"] + FILE_LIFE_S:
        raise ApiError(
            403,
            f"You do not have permission to access the File {file_id} or it may not exist.",
        )
    return doc


def path_of(core: Core, doc: Doc) -> Path:
    """Where a file's bytes are."""
    path: Path = core.store.folder / doc["path"]
    return path


def _find_result(core: Core, file_id: str) -> tuple[Doc, Path]:
    job = core.jobs.get(f"batches/{file_id.removeprefix(_RESULT_PREFIX)}")
    paths = core.jobs.output_paths(job) if job and not job["extra"].get("inline") else []
    if job is None or not paths or core.clock.now() > job["ended_s"] + _RESULT_LIFE_S:
        raise ApiError(404, f"File {file_id} was not found.")
    facts = {**core.door.facts, "file": file_id, "display_name": job["display_name"]}
    if core.board.strike(FaultKind.FILE_VANISHED, facts):
        raise ApiError(403, f"You do not have permission to access the File {file_id}.")
    for late in core.board.peek(FaultKind.RESULT_LATE, facts):
        wait_s = late.arg("seconds")
        if wait_s is None or core.clock.now() < job["ended_s"] + wait_s:
            core.board.strike(FaultKind.RESULT_LATE, facts)
            raise ApiError(404, f"File {file_id} was not found.")
    return job, paths[0]


def _get(core: Core, request: Request) -> Answer:
    file_id = request.names["file"]
    if not file_id.startswith(_RESULT_PREFIX):
        return json_answer(file_json(core, find_file(core, file_id)))
    job, path = _find_result(core, file_id)
    return json_answer(
        {
            "name": f"files/{file_id}",
            "mimeType": "application/jsonl",
            "sizeBytes": str(path.stat().st_size),
            "createTime": timestamp(job["ended_s"]),
            "updateTime": timestamp(job["ended_s"]),
            "uri": f"{core.url}/v1beta/files/{file_id}",
            "downloadUri": f"{core.url}/v1beta/files/{file_id}:download?alt=media",
            "state": "ACTIVE",
            "source": "GENERATED",
        }
    )


def _list(core: Core, request: Request) -> Answer:
    now = core.clock.now()
    docs = [doc for doc in core.store.all("file") if now <= doc["created_s"] + FILE_LIFE_S]
    page, token = cut_page(core, request, docs, default=_PAGE_DEFAULT, most=_PAGE_MOST)
    shown: dict[str, Any] = {}
    if page:
        shown["files"] = [file_json(core, doc) for doc in page]
    if token:
        shown["nextPageToken"] = token
    return json_answer(shown)


def _delete(core: Core, request: Request) -> Answer:
    file_id = request.names["file"]
    if file_id.startswith(_RESULT_PREFIX):
        raise ApiError(400, "file.name: longer than 40 characters.")
    doc = find_file(core, file_id)
    core.store.delete("file", file_id)
    path_of(core, doc).unlink(missing_ok=True)
    return json_answer({})


def _download(core: Core, request: Request) -> Answer:
    file_id = request.names["file"]
    if request.query.get("alt") != "media":
        raise ApiError(400, "Only alt=media downloads a file.")
    if not file_id.startswith(_RESULT_PREFIX):
        find_file(core, file_id)
        raise ApiError(400, "Only generated files can be downloaded.")
    job, path = _find_result(core, file_id)
    core.door.facts.update(display_name=job["display_name"], model=job["model"])
    wanted = request.headers.get("Range")
    if wanted and core.board.strike(FaultKind.RANGE_IGNORED, core.door.facts):
        wanted = None
    short = wanted and core.board.strike(FaultKind.RANGE_SHORT, core.door.facts)
    if wanted and short and wanted.endswith("-"):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        wanted += str(start + int(short.arg("bytes")) - 1)
    headers = {
        "Content-Type": "application/jsonl",
        "Content-Disposition": f'attachment; filename="{file_id}.jsonl"',
    }
    return file_answer(path, headers, wanted)


_FILE = VERSION + r"/files/{file}"
ROUTES: Final = (
    route("GET", VERSION + "/files", "files.list", _list, "gemini"),
    route("GET", _FILE, "files.get", _get, "gemini"),
    route("DELETE", _FILE, "files.delete", _delete, "gemini"),
    route("GET", _FILE + ":download", "files.download", _download, "gemini"),
    route("GET", "/download" + _FILE + ":download", "files.download", _download, "gemini"),
)
