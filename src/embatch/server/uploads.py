"""Endpoints of the Files API: uploads, get, list, delete, downloads."""

import os
import re
from functools import partial
from typing import Any, BinaryIO, Final

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from embatch.server.bodies import (
    declared_bytes,
    file_response,
    held_body,
    json_response,
    pieces_of,
    read_json,
)
from embatch.server.edge import translated
from embatch.server.lanes import Lanes
from embatch.server.multipart import Multipart
from embatch.server.service import Service
from embatch.server.shelf import Upload
from embatch.server.wire import (
    ApiError,
    build_page_token,
    invalid,
    message_of,
    page_size,
    parse_page_token,
    text_of,
)
from embatch.server.wire_shapes import (
    JSONL,
    RESULT_PREFIX,
    ShownBatch,
    ShownFile,
    build_file,
    build_result_file,
)
from embatch.server.writers import UPLOAD_STATUS, Sink, SoleWriter

GRANULARITY_BYTES: Final = 8 << 20
"""Chunks that are not the last are multiples of this. Source: protocol of the real service."""
PAGE_DEFAULT: Final = 10
PAGE_MOST: Final = 100
_START_BYTES: Final = 1 << 20
"""Size of the JSON that begins an upload."""
_STATUS: Final = UPLOAD_STATUS
_RECEIVED: Final = "x-goog-upload-size-received"
_GRANULARITY: Final = "x-goog-upload-chunk-granularity"


class Uploads:
    """The endpoints over one service."""

    def __init__(self, service: Service, lanes: Lanes) -> None:
        self._service = service
        self._lanes = lanes
        self._shelf = service.shelf
        self._weather = service.weather
        self._writers: dict[str, SoleWriter] = {}

    async def upload(self, request: Request) -> Response:
        """POST or PUT upload/{version}/files: begins an upload, or goes on with one."""
        upload_id = request.query_params.get("upload_id")
        if upload_id is not None:
            return await self._go_on(request, upload_id)
        query = request.query_params
        protocol = request.headers.get("x-goog-upload-protocol") or query.get("uploadType", "")
        if protocol == "multipart":
            return await self._multipart(request)
        if protocol != "resumable" or _commands(request) != {"start"}:
            raise invalid("Upload protocol must be resumable, with command start, or multipart.")
        return await self._start(request)

    async def _start(self, request: Request) -> Response:
        async with held_body(request, _START_BYTES) as body:
            asked = message_of(read_json(body), "file")
        mime_type = request.headers.get("x-goog-upload-header-content-type", "")
        begin = partial(
            self._shelf.begin,
            name=text_of(asked, "name"),
            display_name=text_of(asked, "displayName"),
            mime_type=mime_type or text_of(asked, "mimeType"),
            declared=_header_number(request, "X-Goog-Upload-Header-Content-Length"),
        )
        upload = await to_thread.run_sync(begin)
        version = request.path_params["version"]
        url = (
            f"{base_url(request)}/upload/{version}/files"
            f"?upload_id={upload.id}&upload_protocol=resumable"
        )
        return Response(
            media_type="text/plain",
            headers={
                "x-goog-upload-url": url,
                "x-goog-upload-control-url": url,
                _STATUS: "active",
                _GRANULARITY: str(GRANULARITY_BYTES),
            },
        )

    async def _go_on(self, request: Request, upload_id: str) -> Response:
        commands = _commands(request)
        upload = await to_thread.run_sync(self._shelf.upload, upload_id)
        if commands == {"query"}:
            return await to_thread.run_sync(
                self._progress, upload, base_url(request), limiter=self._lanes.polls
            )
        if commands and commands <= {"upload", "finalize"}:
            async with SoleWriter(self._writers, upload.id):
                return await self._take_chunk(request, upload_id, final="finalize" in commands)
        if commands == {"cancel"}:
            async with SoleWriter(self._writers, upload.id):
                await to_thread.run_sync(self._shelf.cancel, upload, limiter=self._lanes.changes)
            return Response(headers={_STATUS: "cancelled"}, media_type="text/plain")
        raise ApiError(
            400,
            "X-Goog-Upload-Command must be upload, finalize, query or cancel.",
            headers={_STATUS: upload.state},
        )

    def _progress(self, upload: Upload, url: str) -> Response:
        if upload.state == "final":
            return self._final(self._shelf.of_upload(upload), url)
        received = self._shelf.received(upload) if upload.state == "active" else 0
        return Response(
            media_type="text/plain",
            headers={
                _STATUS: upload.state,
                _RECEIVED: str(received),
                _GRANULARITY: str(GRANULARITY_BYTES),
            },
        )

    async def _take_chunk(self, request: Request, upload_id: str, *, final: bool) -> Response:
        upload = await to_thread.run_sync(self._shelf.upload, upload_id)
        if upload.state != "active":
            raise ApiError(400, "The upload has already ended.", headers={_STATUS: upload.state})
        received = await to_thread.run_sync(self._shelf.received, upload)
        try:
            size = await self._append(request, upload, received)
            self._check_chunk(upload, received, size, final=final)
        except OSError as error:
            await to_thread.run_sync(os.truncate, self._shelf.blob(upload), received)
            raise _unwritten(error, received) from error
        except ApiError as error:
            if error.code == 400:
                await to_thread.run_sync(os.truncate, self._shelf.blob(upload), received)
            kept = await to_thread.run_sync(self._shelf.received, upload)
            error.headers.update({_STATUS: "active", _RECEIVED: str(kept)})
            raise
        if not final:
            return Response(
                media_type="text/plain", headers={_STATUS: "active", _RECEIVED: str(size)}
            )
        try:
            file = await to_thread.run_sync(self._shelf.finish, upload, limiter=self._lanes.changes)
        except OSError as error:
            raise _unwritten(error, size) from error
        except ApiError as error:
            error.headers.update({_STATUS: "active", _RECEIVED: str(size)})
            raise
        self._weather.uploaded(file)
        return self._final(file, base_url(request))

    async def _append(self, request: Request, upload: Upload, received: int) -> int:
        """Adds the body to an upload's bytes, gives their number. What came stays if it breaks."""
        offset = _header_number(request, "X-Goog-Upload-Offset")
        if offset != received:
            raise invalid(f"X-Goog-Upload-Offset must be {received}, the bytes received so far.")
        most = self._shelf_limit(upload)
        if received + (declared_bytes(request) or 0) > most:
            raise self._over(upload)
        with self._shelf.blob(upload).open("ab", buffering=0) as file:
            sink = Sink(file)
            try:
                async for piece in pieces_of(request):
                    received += len(piece)
                    if received > most:
                        raise self._over(upload)
                    await sink.write(piece)
            finally:
                with anyio.CancelScope(shield=True):
                    await sink.flush()
        return received

    def _shelf_limit(self, upload: Upload) -> int:
        most = self._service.settings.max_file_bytes
        return most if upload.declared is None else upload.declared

    def _over(self, upload: Upload) -> ApiError:
        if upload.declared is None:
            return self._shelf.too_large()
        return invalid(f"More bytes than the {upload.declared} that were announced.")

    def _check_chunk(self, upload: Upload, received: int, size: int, *, final: bool) -> None:
        whole = size % GRANULARITY_BYTES == 0 or (size - received) % GRANULARITY_BYTES == 0
        if not final and not whole:
            raise invalid(
                f"A chunk that is not the last must be a multiple of {GRANULARITY_BYTES} bytes."
            )
        if final and upload.declared is not None and size != upload.declared:
            raise invalid(f"Finalized at {size} bytes, but {upload.declared} were announced.")

    async def _multipart(self, request: Request) -> Response:
        parts = Multipart(request.headers.get("content-type", ""))
        most = self._service.settings.max_file_bytes
        if (declared_bytes(request) or 0) > most + _START_BYTES:
            raise self._shelf.too_large()
        begin = partial(self._shelf.begin, name="", display_name="", mime_type="", declared=None)
        upload = await to_thread.run_sync(begin)
        try:
            await self._take_parts(request, upload, parts)
            asked = message_of(parts.asked or {}, "file")
            kept = await to_thread.run_sync(
                partial(
                    self._shelf.describe,
                    upload,
                    name=text_of(asked, "name"),
                    display_name=text_of(asked, "displayName"),
                    mime_type=text_of(asked, "mimeType") or parts.mime_type,
                )
            )
            made = await to_thread.run_sync(self._shelf.finish, kept, limiter=self._lanes.changes)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._shelf.cancel, upload, limiter=self._lanes.changes)
            raise
        self._weather.uploaded(made)
        return json_response({"file": self._shown(made, base_url(request))})

    async def _take_parts(self, request: Request, upload: Upload, parts: Multipart) -> None:
        """Writes the file's bytes of a multipart body, as they come."""
        left = self._service.settings.max_file_bytes
        with self._shelf.blob(upload).open("ab", buffering=0) as file:
            sink = Sink(file)
            async for piece in pieces_of(request):
                certain = parts.feed(piece)
                left -= len(certain)
                if left < 0:
                    raise self._shelf.too_large()
                await sink.write(certain)
            last = parts.finish()
            if len(last) > left:
                raise self._shelf.too_large()
            await sink.write(last)
            await sink.flush()

    async def get_file(self, request: Request) -> Response:
        """GET files/{file}."""
        return await to_thread.run_sync(
            self._get_file,
            request.path_params["file"],
            base_url(request),
            limiter=self._lanes.polls,
        )

    def _get_file(self, file_id: str, url: str) -> Response:
        if not is_result(file_id):
            return json_response(self._shown(self._shelf.find(file_id), url))
        batch, file = self._open_result(file_id)
        with file:
            size = os.fstat(file.fileno()).st_size
        return json_response(build_result_file(batch, size, url))

    async def list_files(self, request: Request) -> Response:
        """GET files."""
        size = page_size(request.query_params, default=PAGE_DEFAULT, most=PAGE_MOST)
        before = parse_page_token(request.query_params)
        page, following = await to_thread.run_sync(
            partial(self._shelf.page, before_seq=before, size=size), limiter=self._lanes.polls
        )
        url = base_url(request)
        shown: dict[str, Any] = {"files": [self._shown(file, url) for file in page]} if page else {}
        if following is not None:
            shown["nextPageToken"] = build_page_token(following)
        return json_response(shown)

    async def delete_file(self, request: Request) -> Response:
        """DELETE files/{file}. Results cannot be deleted alone: the batch takes them along."""
        file_id = request.path_params["file"]
        if is_result(file_id):
            raise invalid("file.name: longer than 40 characters; delete the batch instead.")
        await to_thread.run_sync(self._shelf.delete, file_id, limiter=self._lanes.changes)
        return json_response({})

    async def download(self, request: Request) -> Response:
        """GET files/{file}:download: a batch's results, or a range of them."""
        if request.query_params.get("alt") != "media":
            raise invalid("alt: only alt=media downloads a file.")
        return await to_thread.run_sync(
            self._download, request.path_params["file"], request.headers.get("range")
        )

    def _download(self, file_id: str, wanted: str | None) -> Response:
        if not is_result(file_id):
            self._shelf.find(file_id)
            raise invalid("Only generated files can be downloaded.")
        batch, file = self._open_result(file_id)
        wanted = self._weather.wanted_range(batch, wanted)
        headers = {
            "Content-Type": JSONL,
            "Content-Disposition": f'attachment; filename="{file_id}.jsonl"',
        }
        return file_response(file, headers, wanted)

    def _open_result(self, file_id: str) -> tuple[ShownBatch, BinaryIO]:
        gone = ApiError(404, "The result file was not found.")
        try:
            batch, file = self._service.batches.open_output(file_id.removeprefix(RESULT_PREFIX))
        except ApiError:
            raise gone from None
        if file is None:
            raise gone
        if batch.file_name is None:
            file.close()
            raise gone
        try:
            self._weather.result_file(batch)
        except BaseException:
            file.close()
            raise
        return batch, file

    def _shown(self, file: ShownFile, url: str) -> dict[str, Any]:
        return self._weather.file(file, build_file(file, url))

    def _final(self, file: ShownFile | None, url: str) -> Response:
        shown = {"file": self._shown(file, url)} if file else {}
        size = str(file.size_bytes) if file else "0"
        return json_response(shown, headers={_STATUS: "final", _RECEIVED: size})


def base_url(request: Request) -> str:
    """The server's address as this client sees it, so that ports and proxies in between work."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        name, port = request.scope["server"] or ("127.0.0.1", 80)
        host = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return f"{request.scope['scheme']}://{host}"


_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", re.ASCII)


def is_result(file_id: str) -> bool:
    """The id is one of a batch's result file."""
    return file_id.startswith(RESULT_PREFIX) and len(file_id) > _LONGEST_ID


_LONGEST_ID: Final = 40


def _unwritten(error: OSError, received: int) -> ApiError:
    """What a client is told of bytes that the disk did not take: it may send them again."""
    answer = translated(error)
    answer.headers.update({_STATUS: "active", _RECEIVED: str(received)})
    return answer


def _commands(request: Request) -> set[str]:
    words = request.headers.get("x-goog-upload-command", "").lower().split(",")
    return {word.strip() for word in words if word.strip()}


def _header_number(request: Request, name: str) -> int | None:
    value = request.headers.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise invalid(f"{name}: a number of bytes is required.")
    return int(value)
