"""The application: routes, in every version of the API, over one service."""

from collections.abc import Sequence
from dataclasses import dataclass

from anyio import to_thread
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from embatch.server.bodies import error_response, json_response
from embatch.server.calls import Calls
from embatch.server.edge import ROUTE_KEY, Edge, failure
from embatch.server.guard import check_key, check_place, is_own_upload
from embatch.server.lanes import Lanes
from embatch.server.metrics import CONTENT_TYPE, Metrics
from embatch.server.openapi import build_openapi
from embatch.server.service import Service
from embatch.server.uploads import Uploads
from embatch.server.weather import Endpoint
from embatch.server.wire import VERSIONS, ApiError


class _Version(Convertor[str]):
    regex = "|".join(VERSIONS)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Id(_Version):
    """A name in a path: a verb may follow it behind a colon."""

    regex = "[^/:]+"


register_url_convertor("api_version", _Version())
register_url_convertor("api_id", _Id())


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the server's surface."""

    method: str
    path: str
    call: str
    """Its name, such as "batches.create"."""
    endpoint: Endpoint
    open: bool = False
    """Needs no key."""


_MODEL = "/{version:api_version}/models/{model:api_id}"
_BATCHES = "/{version:api_version}/batches"
_BATCH = _BATCHES + "/{batch:api_id}"
_FILES = "/{version:api_version}/files"
_FILE = _FILES + "/{file:api_id}"


def create_app(service: Service) -> ASGIApp:
    """The application over a service that has been started."""
    lanes = Lanes()
    calls, uploads = Calls(service, lanes), Uploads(service, lanes)
    metrics = Metrics(service)
    lines = [
        _Line("GET", "/{version:api_version}/models", "models.list", calls.list_models),
        _Line("GET", _MODEL, "models.get", calls.get_model),
        _Line("POST", _MODEL + ":embedContent", "models.embedContent", calls.embed_content),
        _Line(
            "POST",
            _MODEL + ":batchEmbedContents",
            "models.batchEmbedContents",
            calls.batch_embed_contents,
        ),
        _Line("POST", _MODEL + ":countTokens", "models.countTokens", calls.count_tokens),
        _Line("POST", _MODEL + ":asyncBatchEmbedContent", "batches.create", calls.create_batch),
        _Line("GET", _BATCHES, "batches.list", calls.list_batches),
        _Line("GET", _BATCH, "batches.get", calls.get_batch),
        _Line("DELETE", _BATCH, "batches.delete", calls.delete_batch),
        _Line("POST", _BATCH + ":cancel", "batches.cancel", calls.cancel_batch),
        _Line("PATCH", _BATCH + ":updateEmbedContentBatch", "batches.update", calls.update_batch),
        _Line("POST", "/upload" + _FILES, "files.upload", uploads.upload),
        _Line("PUT", "/upload" + _FILES, "files.upload", uploads.upload),
        _Line("GET", _FILES, "files.list", uploads.list_files),
        _Line("GET", _FILE, "files.get", uploads.get_file),
        _Line("DELETE", _FILE, "files.delete", uploads.delete_file),
        _Line("GET", _FILE + ":download", "files.download", uploads.download),
        _Line("GET", "/download" + _FILE + ":download", "files.download", uploads.download),
        _Line("GET", "/metrics", "metrics", _metrics_page(metrics)),
        _Line("GET", "/healthz", "healthz", _health(service), open=True),
        _Line("GET", "/openapi.json", "openapi", _description(service), open=True),
    ]
    app = Starlette(routes=_routes(service, lines), exception_handlers={HTTPException: _unrouted})
    app.router.redirect_slashes = False
    return Edge(app, metrics)


def _routes(service: Service, lines: Sequence[_Line]) -> list[Route]:
    """Starlette's routes: methods of one path stand together, so that 405 tells them all."""
    paths = dict.fromkeys(line.path for line in lines)
    made = []
    for path in paths:
        by_method = {line.method: line for line in lines if line.path == path}
        made.append(Route(path, _serve(service, by_method), methods=list(by_method)))
    return made


def _serve(service: Service, by_method: dict[str, _Line]) -> Endpoint:
    template = {
        method: line.path.replace(":api_version", "").replace(":api_id", "")
        for method, line in by_method.items()
    }

    async def serve(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        request.scope[ROUTE_KEY] = template[method]
        try:
            return await _answer(service, by_method[method], request)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - the outer edge of a call: told and logged
            return failure(error, template[method])

    return serve


async def _answer(service: Service, line: _Line, request: Request) -> Response:
    settings = service.settings
    if settings.api_key is None:
        check_place(request, settings.allowed_hosts)
    elif not (line.open or (line.call == "files.upload" and is_own_upload(request))):
        check_key(request, settings.api_key)
    return await service.weather.serve(line.call, request, line.endpoint)


def _metrics_page(metrics: Metrics) -> Endpoint:
    async def page(_: Request) -> Response:
        return Response(await to_thread.run_sync(metrics.page), media_type=CONTENT_TYPE)

    return page


def _health(service: Service) -> Endpoint:
    async def health(_: Request) -> Response:
        trouble = service.trouble()
        if trouble is not None:
            # Everybody may ask: folders of this machine are named in the log only.
            trouble = trouble.replace(str(service.settings.folder), "the data folder")
            return json_response({"status": "failing", "reason": trouble}, status=503)
        told = service.scheduler.health()
        progress = told.last_progress_at
        return json_response(
            {
                "status": "ok",
                "working": bool(told.current_batches),
                "unfinished_batches": len(service.finisher.open_models()),
                "last_progress_at": progress.isoformat() if progress else None,
            }
        )

    return health


def _description(service: Service) -> Endpoint:
    catalogue = service.catalogue
    described = build_openapi(
        [name for name, _ in catalogue.names()],
        min(engine.dims for engine in catalogue.engines()),
        keyed=service.settings.api_key is not None,
    )

    async def description(_: Request) -> Response:
        return json_response(described)

    return description


async def _unrouted(_: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if code == 405:
        return error_response(ApiError(405, "This method is not for this path.", headers=headers))
    return error_response(ApiError(404, "There is nothing at this path."))
