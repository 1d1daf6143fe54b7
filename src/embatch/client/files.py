"""The Files API: resumable upload in chunks, download resumed where it broke off."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embatch.client.calls import Calls, parse_object
from embatch.client.flow import (
    Emit,
    Flow,
    ReadStream,
    Send,
    ShutStream,
    Sleep,
    Work,
    perform,
)
from embatch.client.retry import Accepted, Again, Refused, Stale
from embatch.client.wire import integer, parse_file
from embatch.errors import (
    EmbatchError,
    InputError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.transport import FileSlice, Lost, Response, Stream
from embatch.types.files import RemoteFile

CHUNK_BYTES: Final = 8 << 20
"""Bytes of one chunk: the granularity that the service asks for."""
JSONL: Final = "application/jsonl"
SESSIONS: Final = 3
"""Uploads begun anew when the service forgets one."""
_UPLOAD: Final = "x-goog-upload-"
_ID_BYTES: Final = 10


class _SessionLostError(Exception):
    """The service no longer knows the upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LocalFile:
    path: Path
    size_bytes: int
    sha256: str


def _look_at(path: Path) -> _LocalFile:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return _LocalFile(path=path, size_bytes=file.tell(), sha256=digest)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def upload(
    calls: Calls,
    version: str,
    path: Path,
    *,
    display_name: str,
    mime_type: str,
    name: str | None = None,
) -> Flow[RemoteFile]:
    """Uploads a local file and checks what arrived by its SHA-256.

    `name` is `files/{id}`, one that no file bears yet; None takes one by chance.
    """
    if not mime_type.isascii() or not mime_type.isprintable():
        raise InvalidRequestError("mime_type must be a type like application/jsonl")
    local = yield from perform(Work(call=lambda: _look_at(path)))
    if not local.size_bytes:
        raise InputError(f"{path} is empty: there is nothing to upload")
    for _ in range(SESSIONS):
        own = name or f"files/eb-{secrets.token_hex(_ID_BYTES)}"
        try:
            file = yield from _upload_once(calls, version, local, own, display_name, mime_type)
        except _SessionLostError:
            continue
        if file.sha256 not in (None, local.sha256) or file.size_bytes not in (0, local.size_bytes):
            yield from delete(calls, version, file.name)
            raise InputError(
                f"{path} changed while it was uploaded: what arrived is another file. The upload "
                "was removed; try again once nothing writes to it."
            )
        return file
    raise ProviderUnavailableError(f"uploading {path.name}: the service lost it again and again")


def _upload_once(
    calls: Calls, version: str, local: _LocalFile, name: str, display_name: str, mime_type: str
) -> Flow[RemoteFile]:
    what = f"uploading {local.path.name}"
    described = {"name": name, "display_name": display_name, "mime_type": mime_type}
    start = calls.request(
        "POST",
        f"/upload/{version}/files",
        body={"file": {**described, "size_bytes": local.size_bytes}},
        headers={
            f"{_UPLOAD}protocol": "resumable",
            f"{_UPLOAD}command": "start",
            f"{_UPLOAD}header-content-length": str(local.size_bytes),
            f"{_UPLOAD}header-content-type": mime_type,
        },
    )
    begun = yield from calls.answer(what, start)
    place = _own_host(begun.headers.get(f"{_UPLOAD}url", ""))
    if not place:
        raise ProviderUnavailableError(f"{what}: the service names no place to send it to")
    grain = max(integer(begun.headers.get(f"{_UPLOAD}chunk-granularity")), 1)
    chunk = max(CHUNK_BYTES // grain, 1) * grain
    final = yield from _send_chunks(calls, what, place, local, chunk)
    answer = parse_object(final.body, what).get("file") if final.body else None
    if isinstance(answer, dict):
        return parse_file(answer)
    # The last chunk's answer was lost: the file is there under the name we chose.
    return (yield from get(calls, version, name))


def _own_host(url: str) -> str:
    """Path and query of the upload's URL: they count, its host may be one we cannot reach."""
    _, found, rest = url.partition("/upload/")
    return f"/upload/{rest}" if found else ""


def _send_chunks(
    calls: Calls, what: str, place: str, local: _LocalFile, chunk: int
) -> Flow[Response]:
    offset, attempt = 0, 0
    while True:
        size = min(chunk, local.size_bytes - offset)
        last = offset + size == local.size_bytes
        command = "upload, finalize" if last else "upload"
        outcome = yield from _command(
            calls,
            place,
            {f"{_UPLOAD}command": command, f"{_UPLOAD}offset": str(offset)},
            FileSlice(path=local.path, start=offset, size=size),
        )
        verdict = calls.judged(outcome, what=what, attempt=attempt)
        if isinstance(verdict, Accepted):
            status = verdict.response.headers.get(f"{_UPLOAD}status")
            if status == "final":
                return verdict.response
            if status == "active" and not last:
                offset, attempt = offset + size, 0
                continue
        had = offset
        answer, offset = yield from _ask(calls, what, place, verdict)
        if answer is not None:
            return answer
        attempt = 0 if offset > had else attempt + 1
        if attempt >= calls.policy.attempts:
            raise _error_of(verdict, what)
        if isinstance(verdict, Again):
            yield from perform(Sleep(seconds=verdict.wait_s))


def _error_of(verdict: Accepted | Again | Stale | Refused, what: str) -> EmbatchError:
    if isinstance(verdict, Accepted):
        return ProviderUnavailableError(f"{what}: the service does not say what it received")
    return verdict.error


def _command(
    calls: Calls, place: str, headers: dict[str, str], body: FileSlice | None
) -> Flow[Response | Lost]:
    """Sends to the upload's own URL: its id is the right to it, the key stays here."""
    return (
        yield from perform(
            Send(
                request=calls.request(
                    "POST",
                    place,
                    body=body,
                    headers={**headers, "content-type": "application/octet-stream"},
                    open_to_all=True,
                )
            )
        )
    )


def _ask(
    calls: Calls, what: str, place: str, cause: Accepted | Again | Stale | Refused
) -> Flow[tuple[Response | None, int]]:
    """Asks how much has arrived: the final answer where that is all, else the offset to go on."""
    for attempt in range(calls.policy.attempts):
        outcome = yield from _command(calls, place, {f"{_UPLOAD}command": "query"}, None)
        verdict = calls.judged(outcome, what=what, attempt=attempt)
        match verdict:
            case Accepted(response=response):
                status = response.headers.get(f"{_UPLOAD}status")
                if status == "final":
                    return response, 0
                received = response.headers.get(f"{_UPLOAD}size-received", "")
                if status != "active" or not received.isdigit():
                    raise _SessionLostError
                return None, int(received)
            case Again(wait_s=wait_s):
                yield from perform(Sleep(seconds=wait_s))
            case Refused(error=NotFoundError()) | Refused(error=PermissionDeniedError()):
                raise _SessionLostError
            case Refused() | Stale():
                raise _error_of(cause, what)
    raise _error_of(verdict, what)


def get(calls: Calls, version: str, name: str) -> Flow[RemoteFile]:
    """What the service knows of a file."""
    request = calls.request("GET", f"/{version}/{name}")
    return parse_file((yield from calls.json(f"looking at {name}", request)))


def delete(calls: Calls, version: str, name: str) -> Flow[None]:
    """Removes a file. One that is gone already answers 403, as one of others does."""
    request = calls.request("DELETE", f"/{version}/{name}")
    gone = (NotFoundError, PermissionDeniedError)
    yield from calls.answer(f"deleting {name}", request, gone=gone)


def listed(calls: Calls, version: str) -> Flow[None]:
    """Emits every uploaded file, page by page."""
    token = ""
    while True:
        query = {"pageSize": 100, "pageToken": token}
        request = calls.request("GET", f"/{version}/files", query=query)
        page = yield from calls.json("listing files", request)
        for document in page.get("files") or ():
            yield from perform(Emit(value=parse_file(document)))
        token = str(page.get("nextPageToken") or "")
        if not token:
            return


def download(
    calls: Calls, version: str, name: str, take: Callable[[bytes], Flow[None]]
) -> Flow[None]:
    """Gives a file's bytes to `take` in order, each once; goes on where the stream broke off."""
    what = f"downloading {name}"
    path = f"/{version}/{name}:download"
    start, attempt, whole = 0, 0, -1
    while True:
        headers = {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        request = calls.request("GET", path, query={"alt": "media"}, headers=headers)
        stream = yield from calls.opened(what, request)
        whole = _whole_size(stream, whole)
        broken, moved = yield from _copy(stream, take, skip=_skipped(stream, start))
        start, attempt = start + moved, 0 if moved else attempt + 1
        if 0 <= whole <= start or (broken is None and whole < 0):
            return
        lost = broken or Lost(sent=True, reason="the answer ended before the file did")
        if attempt >= calls.policy.attempts:
            raise ProviderUnavailableError(f"{what}: {lost.reason}. Try again later.")
        verdict = calls.judged(lost, what=what, attempt=attempt)
        if isinstance(verdict, Again):
            yield from perform(Sleep(seconds=verdict.wait_s))


def _whole_size(stream: Stream, known: int) -> int:
    """The file's size in bytes where an answer says so, else what was known; -1 for neither."""
    length = stream.headers.get("content-length", "")
    if stream.status == 206:
        length = stream.headers.get("content-range", "").rpartition("/")[2]
    plain = "content-encoding" not in stream.headers
    return int(length) if plain and length.isdigit() else known


def _skipped(stream: Stream, start: int) -> int:
    """Bytes to leave out: those had already, where the service sends all of the file again."""
    if stream.status != 206:
        return start
    begin = stream.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    if not begin.isdigit() or int(begin) > start:
        raise ProviderUnavailableError(
            f"the service was asked for bytes {start} and on, and does not say that it sent them: "
            "try again later"
        )
    return start - int(begin)


def _copy(
    stream: Stream, take: Callable[[bytes], Flow[None]], *, skip: int
) -> Flow[tuple[Lost | None, int]]:
    moved = 0
    while True:
        chunk = yield from perform(ReadStream(stream=stream))
        if isinstance(chunk, Lost):
            yield from perform(ShutStream(stream=stream))
            return chunk, moved
        if not chunk:
            yield from perform(ShutStream(stream=stream))
            return None, moved
        if skip:
            skip, chunk = max(skip - len(chunk), 0), chunk[skip:]
        if chunk:
            yield from take(chunk)
            moved += len(chunk)


def download_to(calls: Calls, version: str, name: str, path: Path) -> Flow[Path]:
    """Downloads a file to `path`, which appears when it is whole."""
    part = part_beside(path)

    def take(chunk: bytes) -> Flow[None]:
        file.write(chunk)
        return
        yield  # a flow without effects

    try:
        with part.open("wb") as file:
            yield from download(calls, version, name, take)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def part_beside(path: Path) -> Path:
    """Where a download grows until it is whole; InputError for what is no file to write."""
    if not path.name or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is no file: name one to write")
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
