"""Endpoints of models and batches: a request in, an answer out. Work that may wait runs in threads.

Polls have threads of their own: neither embedding nor creates, deletes and ends of uploads hold
them up.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np
import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from embatch.server.batches import unknown_batch
from embatch.server.bodies import Span, SpanResponse, held_body, json_response, read_json
from embatch.server.lanes import Lanes
from embatch.server.models import ServedModel
from embatch.server.service import Service
from embatch.server.wire import (
    ApiError,
    build_page_token,
    invalid,
    message_of,
    page_size,
    parse_page_token,
    query_of,
    text_of,
    unknown_model,
)
from embatch.server.wire_create import read_create
from embatch.server.wire_rows import (
    RowRequest,
    RowRules,
    read_countable,
    read_many,
    read_request,
)
from embatch.server.wire_shapes import (
    ShownBatch,
    build_batch,
    build_model,
    build_operation,
    build_usage,
    split_at_items,
)
from embatch.types.results import Embedded, Matrix

T = TypeVar("T")

MOST_CONTENTS: Final = 100
PAGE_DEFAULT: Final = 50
PAGE_MOST: Final = 1000
EMBED_WAITING: Final = 256
"""Interactive calls that wait for their turn at most; further ones are refused."""
CONTENT_BYTES: Final = 1 << 20
CONTENTS_BYTES: Final = 4 << 20
UPDATE_BYTES: Final = 64 << 10
"""Sizes of bodies that are made into objects at once: of one content, of several, of a change."""


class Calls:
    """The endpoints over one service."""

    def __init__(self, service: Service, lanes: Lanes) -> None:
        self._service = service
        self._lanes = lanes

    # Models

    async def list_models(self, request: Request) -> Response:
        """GET models."""
        size = page_size(request.query_params, default=PAGE_DEFAULT, most=PAGE_MOST)
        at = parse_page_token(request.query_params) or 0
        names = self._service.catalogue.names()
        shown: dict[str, Any] = {
            "models": [_model_json(name, model) for name, model in names[at : at + size]]
        }
        if not shown["models"]:
            shown = {}
        if at + size < len(names):
            shown["nextPageToken"] = build_page_token(at + size)
        return json_response(shown)

    async def get_model(self, request: Request) -> Response:
        """GET models/{model}."""
        name, model = self._model(request, "getModel")
        return json_response(_model_json(name, model))

    async def embed_content(self, request: Request) -> Response:
        """POST models/{model}:embedContent."""
        name, model = self._model(request, "embedContent")

        def read(body: dict[str, Any]) -> list[RowRequest]:
            return [read_request(body, RowRules(model=name, dims=model.engine.dims))]

        made, usage = await self._embedded(request, model, read, CONTENT_BYTES)
        shown = [b'"embedding":{"values":%b}' % values for values in made[:1]]
        return json_response(b"{%b}" % b",".join(shown + usage))

    async def batch_embed_contents(self, request: Request) -> Response:
        """POST models/{model}:batchEmbedContents."""
        name, model = self._model(request, "batchEmbedContents")

        def read(body: dict[str, Any]) -> list[RowRequest]:
            rules = RowRules(model=name, dims=model.engine.dims)
            return read_many(body, rules, most=MOST_CONTENTS)

        made, usage = await self._embedded(request, model, read, CONTENTS_BYTES)
        listed = b",".join(b'{"values":%b}' % values for values in made)
        return json_response(b"{%b}" % b",".join([b'"embeddings":[%b]' % listed, *usage]))

    async def count_tokens(self, request: Request) -> Response:
        """POST models/{model}:countTokens."""
        _, model = self._model(request, "countTokens")
        async with held_body(request, self._limit(CONTENTS_BYTES)) as body:

            def count() -> int:
                return sum(model.engine.count_tokens(read_countable(read_json(body))))

            total = await self._in_turn(count)
        details = [{"modality": "TEXT", "tokenCount": total}]
        return json_response({"totalTokens": total, "promptTokensDetails": details})

    async def _embedded(
        self,
        request: Request,
        model: ServedModel,
        read: Callable[[dict[str, Any]], list[RowRequest]],
        most_bytes: int,
    ) -> tuple[list[bytes], list[bytes]]:
        """The values of each row that the body asks for, and members that tell the tokens."""
        async with held_body(request, self._limit(most_bytes)) as body:

            def embed() -> tuple[list[bytes], list[bytes]]:
                rows = read(read_json(body))
                if any(not row.text for row in rows):
                    raise invalid("content is empty")
                return self._embed_rows(rows, model)

            return await self._in_turn(embed)

    def _embed_rows(
        self, rows: list[RowRequest], model: ServedModel
    ) -> tuple[list[bytes], list[bytes]]:
        weather = self._service.weather
        lengths = [weather.length(row.dims, model.engine.dims) for row in rows]
        values = [b""] * len(rows)
        tokens, truncated = 0, False
        for dims in set(lengths):
            places = [place for place, length in enumerate(lengths) if length == dims]
            texts = [model.prompted(rows[place].text, rows[place].task_type) for place in places]
            made = self._service.scheduler.embed_now(model.key, texts, dims=dims)
            tokens += int(made.tokens.sum())
            truncated |= bool(made.truncated.any())
            for place, spelled in zip(places, _spelled(made), strict=True):
                values[place] = spelled
        shown, told = weather.embedded(values, tokens, truncated=truncated)
        return shown, [] if told is None else [_usage(told)]

    def _limit(self, most_bytes: int) -> int:
        return min(most_bytes, self._service.settings.max_inline_bytes)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if self._lanes.embedding.statistics().tasks_waiting >= EMBED_WAITING:
            raise ApiError(503, "The model is overloaded. Please try again later.")
        return await to_thread.run_sync(work, limiter=self._lanes.embedding)

    def _model(self, request: Request, method: str) -> tuple[str, ServedModel]:
        name = request.path_params["model"]
        model = self._service.catalogue.find(name)
        if model is None:
            raise unknown_model(name, request.path_params["version"], method)
        return name, model

    # Batches

    async def create_batch(self, request: Request) -> Response:
        """POST models/{model}:asyncBatchEmbedContent."""
        name, model = self._model(request, "asyncBatchEmbedContent")
        service = self._service
        async with held_body(request, service.settings.max_inline_bytes) as body:
            lane = self._lanes.intake_of(body.seek(0, os.SEEK_END))
            body.seek(0)
            asked = await to_thread.run_sync(lambda: read_create(body.read()), limiter=lane)
            batch = message_of(asked, "batch")
            file_name = text_of(message_of(batch, "inputConfig"), "fileName")
            await service.weather.creating(
                display_name=text_of(batch, "displayName"),
                file_name=file_name,
            )
            if file_name:
                size = await to_thread.run_sync(
                    service.shelf.size_of, file_name, limiter=self._lanes.polls
                )
                lane = self._lanes.intake_of(size)
            made = await to_thread.run_sync(
                partial(service.batches.create, batch, name, model, service.shelf.open_input),
                limiter=lane,
            )
        return json_response(self._operation_of(made))

    async def get_batch(self, request: Request) -> Response:
        """GET batches/{batch}."""
        batch_id = request.path_params["batch"]
        return await to_thread.run_sync(self._operation, batch_id, limiter=self._lanes.polls)

    def _operation(self, batch_id: str) -> Response:
        """The Operation; inline results stand in it twice, sent from the disk."""
        batch = self._service.batches.get(batch_id)
        if not batch.output or batch.file_name:
            return json_response(self._operation_of(batch, results=True))
        batch, file = self._service.batches.open_output(batch_id)
        if file is None:
            raise unknown_batch()
        return _spliced(split_at_items(self._operation_of(batch, results=True)), file)

    def _operation_of(
        self, batch: ShownBatch, *, results: bool = False, listed: bool = False
    ) -> dict[str, Any]:
        shown = build_operation(batch, results=results)
        return self._service.weather.operation(batch, shown, listed=listed)

    async def list_batches(self, request: Request) -> Response:
        """GET batches. A `filter` may come: no source says what it would select, so none does."""
        query = request.query_params
        size = page_size(query, default=PAGE_DEFAULT, most=PAGE_MOST)
        before = parse_page_token(query)
        page, following = await to_thread.run_sync(
            partial(self._service.batches.page, before_seq=before, size=size),
            limiter=self._lanes.polls,
        )
        shown: dict[str, Any] = {}
        if page:
            shown["operations"] = [self._operation_of(batch, listed=True) for batch in page]
        if following is not None:
            shown["nextPageToken"] = build_page_token(following)
        return json_response(self._service.weather.batch_page(shown, size))

    async def cancel_batch(self, request: Request) -> Response:
        """POST batches/{batch}:cancel. A body may come and is not read."""
        await self._change(self._service.batches.cancel, request)
        return json_response({})

    async def delete_batch(self, request: Request) -> Response:
        """DELETE batches/{batch}."""
        await self._change(self._service.batches.delete, request)
        return json_response({})

    async def _change(self, change: Callable[[str], None], request: Request) -> None:
        batch_id = request.path_params["batch"]
        await to_thread.run_sync(change, batch_id, limiter=self._lanes.changes)

    async def update_batch(self, request: Request) -> Response:
        """PATCH batches/{batch}:updateEmbedContentBatch."""
        mask = query_of(request.query_params, "updateMask")
        async with held_body(request, self._limit(UPDATE_BYTES)) as body:

            def update() -> Any:
                batch_id = request.path_params["batch"]
                return self._service.batches.update(batch_id, read_json(body), mask)

            batch = await to_thread.run_sync(update, limiter=self._lanes.changes)
        shown = self._service.weather.metadata(batch, build_batch(batch), listed=False)
        return json_response(shown)


def _model_json(name: str, model: ServedModel) -> dict[str, Any]:
    return build_model(name, model.name, model.engine.max_tokens, model.engine.dims)


def _usage(tokens: int) -> bytes:
    return b'"usageMetadata":%b' % orjson.dumps(build_usage(tokens))


def _spelled(made: Embedded) -> list[bytes]:
    """Each vector as JSON. ApiError 500 for values that are no numbers."""
    vectors: Matrix = np.ascontiguousarray(made.vectors)
    if not np.isfinite(vectors).all():
        raise ApiError(500, "The model gave values that are not finite.")
    return [orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY) for vector in vectors]


def _spliced(pieces: list[bytes], file: BinaryIO) -> Response:
    size = os.fstat(file.fileno()).st_size
    parts: list[bytes | Span] = [pieces[0]]
    for piece in pieces[1:]:
        parts += [Span(file, 0, size), piece]
    return SpanResponse(parts, file, headers={"Content-Type": "application/json; charset=UTF-8"})
