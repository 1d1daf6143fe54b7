"""Faults of calls: refusals, delays, broken connections, odd pages, odd interactive answers."""

import asyncio
import os
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from embatch.server.bodies import SpanResponse, json_response
from embatch.server.calls import PAGE_DEFAULT as BATCHES_DEFAULT
from embatch.server.shelf import absent_file
from embatch.server.simulation.connection import LINE_KEY, BreakableConnection
from embatch.server.simulation.day import Day, Door, ResetError
from embatch.server.simulation.shaping import ShapedResponse
from embatch.server.uploads import PAGE_DEFAULT as FILES_DEFAULT
from embatch.server.uploads import is_result
from embatch.server.weather import Endpoint
from embatch.server.wire import ApiError, invalid
from embatch.testing.cloud.answers import Answer
from embatch.testing.cloud.answers import ApiError as CloudError
from embatch.testing.cloud.doors import drop_within, server_error, strike_door
from embatch.testing.cloud.faults import Fault, FaultKind

_K = FaultKind
_SPARED: Final = frozenset({"metrics", "healthz", "openapi"})
_LISTS: Final = {
    "models.list": BATCHES_DEFAULT, "batches.list": BATCHES_DEFAULT, "files.list": FILES_DEFAULT
}  # fmt: skip
"""Calls that answer in pages, and how many entries a page has by default."""
_OWN_TOKEN: Final = ("+/", "e=")
"""Around the token that leads on from an empty page: it must be encoded in a URL."""


class CallWeather(Day):
    """What befalls calls."""

    async def serve(self, call: str, request: Request, endpoint: Endpoint) -> Response:
        """The answer to a call, or what a fault makes of it."""
        if call in _SPARED:
            return await endpoint(request)
        line: BreakableConnection = request.scope[LINE_KEY]
        door = Door(await self._facts(call, request))
        token = self._doors.set(door)
        try:
            if call != "batches.create":  # its body has to be read first
                await self._strike_before()
            return await self._answered(request, endpoint, line)
        except CloudError as error:
            return _response(error.answer())
        except ResetError:
            await line.reset()
            raise ClientDisconnect from None
        finally:
            self._doors.reset(token)

    async def _facts(self, call: str, request: Request) -> dict[str, Any]:
        facts = {
            **request.path_params,
            "route": call,
            "api": "gemini",
            "method": request.method,
            "path": request.url.path,
        }
        upload_id = request.query_params.get("upload_id")
        if call != "files.upload":
            return facts
        facts["route"] = "files.start"
        if upload_id:
            words = request.headers.get("x-goog-upload-command", "").lower()
            label = "query" if "query" in words else "cancel" if "cancel" in words else "upload"
            facts["route"] = f"files.{label}"
            try:
                upload = await to_thread.run_sync(self._service.shelf.upload, upload_id)
                facts["display_name"] = upload.display_name
            except ApiError:
                pass  # the endpoint refuses it
        return facts

    async def creating(self, *, display_name: str, file_name: str) -> None:
        """The faults before a create, which may look at its name."""
        facts = self.door.facts
        facts["display_name"] = display_name
        await self._strike_before()
        if not file_name:
            return
        file_id = file_name.removeprefix("files/")
        if self._board.strike(_K.FILE_VANISHED, {**facts, "file": file_id}):
            raise absent_file(file_id)
        if self.is_processing(file_id):
            raise invalid("The File is not in an ACTIVE state and usage is not allowed.")

    def is_processing(self, file_id: str) -> bool:
        """An uploaded file is not ready yet."""
        doc = self._counts.get("processing", file_id)
        return doc is not None and self._clock.now() < float(doc["until_s"])

    async def _strike_before(self) -> None:
        struck = strike_door(self._board, self.door.facts)
        self.door.late += struck.late
        await asyncio.sleep(struck.wait_s)
        if struck.reset:
            raise ResetError
        if struck.error is not None:
            raise struck.error

    async def _answered(
        self, request: Request, endpoint: Endpoint, line: BreakableConnection
    ) -> Response:
        facts = self.door.facts
        if facts["route"] in _LISTS:
            return await self._page(request, endpoint, line)
        if facts["route"].startswith("files.") and "file" in facts:
            self._strike_file(str(facts["file"]))
        if facts["route"] != "files.upload":
            return await self._after(await endpoint(request), line)
        answer = await self._upload(request, endpoint)
        if self._board.strike(_K.UPLOAD_ANSWER_LOST, facts):
            raise ResetError
        return await self._after(answer, line)

    async def _after(self, answer: Response, line: BreakableConnection) -> Response:
        try:
            for fault in self.door.late:
                if fault.kind != _K.DELAY:
                    raise server_error(fault)
                await asyncio.sleep(fault.arg("seconds"))
            if self._board.strike(_K.RESET_AFTER, self.door.facts):
                raise ResetError
        except BaseException:
            if isinstance(answer, SpanResponse):
                answer.discard()
            raise
        trickle = self._board.strike(_K.TRICKLE, self.door.facts)
        truncate = self._board.strike(_K.TRUNCATE, self.door.facts)
        if trickle is None and truncate is None:
            return answer
        return ShapedResponse(answer, line, trickle=trickle, truncate=truncate)

    def _strike_file(self, file_id: str) -> None:
        if is_result(file_id):
            return  # struck where the results are opened
        if self._board.strike(_K.FILE_VANISHED, self.door.facts):
            raise absent_file(file_id)

    # Uploads

    async def _upload(self, request: Request, endpoint: Endpoint) -> Response:
        """A chunk that may break within; what came of it is kept or forgotten, as is asked."""
        offset = request.headers.get("x-goog-upload-offset", "")
        at = int(offset) if offset.isascii() and offset.isdigit() and len(offset) <= 18 else 0
        begun_at = at
        dropped: Fault | None = None

        async def receive() -> Message:
            nonlocal at, dropped
            if dropped is not None:
                return {"type": "http.disconnect"}
            message = await request.receive()
            body = message.get("body", b"")
            hit = drop_within(self._board, self.door.facts, at, len(body))
            if hit is None:
                at += len(body)
                return message
            dropped, byte = hit
            return {"type": "http.request", "body": body[: byte - at], "more_body": True}

        try:
            return await endpoint(Request(request.scope, receive))
        except ClientDisconnect:
            fault = dropped
            if fault is None:
                raise
            if not fault.arg("keep"):
                await self._forget_after(request, begun_at)
            raise ResetError from None

    async def _forget_after(self, request: Request, size_bytes: int) -> None:
        shelf = self._service.shelf
        upload = await to_thread.run_sync(shelf.upload, request.query_params["upload_id"])
        await to_thread.run_sync(os.truncate, shelf.blob(upload), size_bytes)

    # Lists

    async def _page(
        self, request: Request, endpoint: Endpoint, line: BreakableConnection
    ) -> Response:
        facts, query = self.door.facts, dict(parse_qsl(request.url.query, keep_blank_values=True))
        token = query.pop("page_token", "") or query.get("pageToken", "")
        query["pageToken"] = token
        before, after = _OWN_TOKEN
        after_empty = token.startswith(before) and token.endswith(after)
        if after_empty:
            query["pageToken"] = token[len(before) : -len(after)]
        small = self._board.strike(_K.SMALL_PAGES, facts)
        asked = query.pop("page_size", "") or query.get("pageSize", "")
        if small and (not asked or (asked.isascii() and asked.isdigit())):
            size = int(asked[:10] or 0) or _LISTS[facts["route"]]
            asked = str(min(size, max(1, int(small.arg("size")))))
        query["pageSize"] = asked
        empty = self._board.strike(_K.EMPTY_PAGES, facts)
        if empty and not after_empty and (not token or not empty.arg("first_only")):
            return await self._after(
                json_response({"nextPageToken": f"{before}{token}{after}"}), line
            )
        scope = {**request.scope, "query_string": urlencode(query).encode()}
        return await self._after(await endpoint(Request(scope, request.receive)), line)

    # Interactive calls

    def length(self, wanted: int, full: int) -> int:
        """The full length, where the wanted one is ignored."""
        if "dims_ignored" not in self.door.facts:
            struck = self._board.strike(_K.DIMS_IGNORED, self.door.facts)
            self.door.facts["dims_ignored"] = struck is not None
        return full if self.door.facts["dims_ignored"] else wanted

    def embedded(
        self, values: list[bytes], tokens: int, *, truncated: bool
    ) -> tuple[list[bytes], int | None]:
        """What is left of an interactive answer."""
        board, facts = self._board, self.door.facts
        if truncated and board.strike(_K.OVER_LONG_REFUSED, facts):
            raise invalid("The input is longer than the model reads.")
        fewer = board.strike(_K.FEWER_VECTORS, facts)
        left = values[: max(0, len(values) - int(fewer.arg("count")))] if fewer else values
        return left, None if board.strike(_K.USAGE_MISSING, facts) else tokens


def _response(answer: Answer) -> Response:
    """An answer of the fake cloud, which is whole in memory."""
    body = b"".join(part for part in answer.parts if isinstance(part, bytes))
    return Response(body, status_code=answer.status, headers=answer.headers)
