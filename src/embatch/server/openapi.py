"""The server's description of itself: every route, parameter, answer and error it gives."""

from collections.abc import Sequence
from typing import Any, Final

from embatch import __version__
from embatch.server.openapi_schemas import SCHEMAS, embed_request, ref
from embatch.server.wire import VERSIONS

_JSON: Final = "application/json"
_ALWAYS: Final = {
    "400": "The request is wrong, or its key is.",
    "503": "The disk is full, or the server is overloaded: try again later.",
}
_NOWHERE: Final = {"404": "There is no such version of the API."}
_BODY: Final = {"408": "The body came too slowly."}
_PLACE: Final = {"403": "Host or Origin names another place."}
_KEY: Final = {"403": "No key was given, or there is no such file."}
_UPLOAD_ID: Final = {"type": "string", "pattern": "^[0-9a-f]{40}$"}
_CHUNK_COMMANDS: Final = ("upload", "upload, finalize", "query", "cancel")
_OFFSET: Final = {"type": "integer", "minimum": 0}
_VERSION: Final = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "enum": list(VERSIONS)},
}


def build_openapi(models: Sequence[str], dims: int, *, keyed: bool) -> dict[str, Any]:
    """The description for a server of these models, whose vectors have up to `dims` values."""
    security: list[dict[str, list[str]]] = (
        [{"header": []}, {"query": []}, {"bearer": []}] if keyed else []
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embatch serve",
            "version": __version__,
            "description": "The embedding part of the Gemini API, over a model on this machine. "
            "Fields may be spelled in camelCase or snake_case; unknown fields are ignored. "
            "Other methods get 405.",
        },
        "security": security,
        "paths": {
            **_model_paths(models),
            **_batch_paths(models),
            **_file_paths(),
            **_own_paths(),
        },
        "components": {
            "schemas": {**SCHEMAS, **embed_request(dims)},
            "securitySchemes": {
                "header": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
                "query": {"type": "apiKey", "in": "query", "name": "key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _header(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema}


def _model(models: Sequence[str]) -> dict[str, Any]:
    return _path("model", {"type": "string", "enum": list(models)})


_BATCH: Final = _path("batch", {"type": "string", "pattern": "^[a-z0-9]{36}$"})
_FILE: Final = _path("file", {"type": "string", "pattern": "^([a-z0-9]{1,40}|batch-[a-z0-9]{36})$"})


def _pages() -> list[dict[str, Any]]:
    return [
        _query("pageSize", {"type": "integer", "minimum": 0, "maximum": 9_999_999_999}),
        _query("pageToken", {"type": "string", "pattern": "^p[0-9]{1,18}$"}),
    ]


def _call(
    name: str,
    summary: str,
    answer: str | dict[str, Any],
    *,
    parameters: Sequence[dict[str, Any]] = (),
    body: str | None = None,
    body_required: bool = True,
    errors: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One operation; `answer` is the name of a schema, or the whole answer."""
    if isinstance(answer, str):
        answer = {"description": "Done.", "content": {_JSON: {"schema": ref(answer)}}}
    told = {**_ALWAYS, **_KEY, **_NOWHERE, **(_BODY if body else {}), **(errors or {})}
    shown: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": [_VERSION, *parameters],
        "responses": {
            "200": answer,
            **{code: _refusal(words) for code, words in sorted(told.items())},
        },
    }
    if body:
        shown["requestBody"] = {
            "required": body_required,
            "content": {_JSON: {"schema": ref(body)}},
        }
    return shown


def _refusal(words: str) -> dict[str, Any]:
    return {"description": words, "content": {_JSON: {"schema": ref("Error")}}}


def _model_paths(models: Sequence[str]) -> dict[str, Any]:
    unknown = {"404": "There is no such model."}
    broken = {"500": "The model failed."}
    one = [_model(models)]
    base = "/{version}/models"
    return {
        base: {
            "get": _call(
                "models.list", "Lists the models.", "ListModelsResponse", parameters=_pages()
            )
        },
        base + "/{model}": {
            "get": _call(
                "models.get", "Tells of one model.", "Model", parameters=one, errors=unknown
            )
        },
        base + "/{model}:embedContent": {
            "post": _call(
                "models.embedContent",
                "Embeds one content at once.",
                "EmbedContentResponse",
                parameters=one,
                body="EmbedContentRequest",
                errors=unknown | broken,
            )
        },
        base + "/{model}:batchEmbedContents": {
            "post": _call(
                "models.batchEmbedContents",
                "Embeds up to 100 contents at once.",
                "BatchEmbedContentsResponse",
                parameters=one,
                body="BatchEmbedContentsRequest",
                errors=unknown | broken,
            )
        },
        base + "/{model}:countTokens": {
            "post": _call(
                "models.countTokens",
                "Counts the tokens of contents.",
                "CountTokensResponse",
                parameters=one,
                body="CountTokensRequest",
                errors=unknown | broken,
            )
        },
    }


def _batch_paths(models: Sequence[str]) -> dict[str, Any]:
    gone = {"404": "There is no such batch."}
    base = "/{version}/batches"
    return {
        "/{version}/models/{model}:asyncBatchEmbedContent": {
            "post": _call(
                "batches.create",
                "Makes a batch; it is queued at once.",
                "Operation",
                parameters=[_model(models)],
                body="AsyncBatchEmbedContentRequest",
                errors={
                    "404": "There is no such model.",
                    "429": "Too many batches are unfinished.",
                },
            )
        },
        base: {
            "get": _call(
                "batches.list",
                "Lists the batches, newest first, without results.",
                "ListOperationsResponse",
                parameters=_pages(),
            )
        },
        base + "/{batch}": {
            "get": _call(
                "batches.get",
                "Tells how a batch does; of one that has ended its results.",
                "Operation",
                parameters=[_BATCH],
                errors=gone,
            ),
            "delete": _call(
                "batches.delete",
                "Removes a batch with its results.",
                "Empty",
                parameters=[_BATCH],
                errors=gone,
            ),
        },
        **_batch_verbs(base + "/{batch}", gone),
    }


def _batch_verbs(base: str, gone: dict[str, str]) -> dict[str, Any]:
    return {
        base + ":cancel": {
            "post": _call(
                "batches.cancel",
                "Stops a batch; rows that are done stay.",
                "Empty",
                parameters=[_BATCH],
                errors=gone,
            )
        },
        base + ":updateEmbedContentBatch": {
            "patch": _call(
                "batches.update",
                "Changes priority or display name.",
                "EmbedContentBatch",
                parameters=[
                    _BATCH,
                    _query(
                        "updateMask",
                        {
                            "type": "string",
                            "pattern": "^(priority|displayName)(,(priority|displayName))?$",
                        },
                    ),
                ],
                body="UpdateEmbedContentBatchRequest",
                body_required=False,
                errors=gone,
            )
        },
    }


def _file_paths() -> dict[str, Any]:
    status = {"description": "active, final or cancelled.", "schema": {"type": "string"}}
    empty = {"text/plain": {"schema": {"type": "string"}}}
    begun = {
        "description": "Begun: go on at x-goog-upload-url. A multipart upload answers as the "
        "last chunk does.",
        "headers": {
            "x-goog-upload-status": status,
            "x-goog-upload-url": {"schema": {"type": "string"}},
            "x-goog-upload-chunk-granularity": {"schema": {"type": "string"}},
        },
        "content": {**empty, _JSON: {"schema": ref("UploadResponse")}},
    }
    taken = {
        "description": "Taken; after the last chunk with the file.",
        "headers": {"x-goog-upload-status": status},
        "content": {**empty, _JSON: {"schema": ref("UploadResponse")}},
    }
    download = _download()
    moved = {**download, "operationId": "files.download.moved"}
    return {
        "/upload/{version}/files": {
            "post": _begin(begun),
            "put": _go_on(taken),
        },
        "/{version}/files": {
            "get": _call(
                "files.list",
                "Lists the files, newest first.",
                "ListFilesResponse",
                parameters=_pages(),
            )
        },
        "/{version}/files/{file}": {
            "get": _call(
                "files.get",
                "Tells of a file.",
                "File",
                parameters=[_FILE],
                errors={"404": "There is no such result."},
            ),
            "delete": _call("files.delete", "Removes a file.", "Empty", parameters=[_FILE]),
        },
        "/{version}/files/{file}:download": {"get": download},
        "/download/{version}/files/{file}:download": {"get": moved},
    }


def _download() -> dict[str, Any]:
    results = {"application/jsonl": {"schema": {"type": "string"}}}
    shown = _call(
        "files.download",
        "A batch's results, a line a row.",
        {
            "description": "The file.",
            "headers": {"Content-Length": {"schema": {"type": "string"}}},
            "content": results,
        },
        parameters=[
            _FILE,
            _query("alt", {"type": "string", "const": "media"}, required=True),
            _header("Range", {"type": "string"}),
        ],
        errors={"404": "There is no such result.", "416": "The range begins behind the end."},
    )
    shown["responses"]["206"] = {"description": "The range.", "content": results}
    return shown


def _begin(answer: dict[str, Any]) -> dict[str, Any]:
    return _call(
        "files.upload",
        "Begins a resumable upload. With upload_id it goes on as PUT does; with "
        "X-Goog-Upload-Protocol multipart it takes multipart/related, JSON then bytes.",
        answer,
        parameters=[
            _header(
                "X-Goog-Upload-Protocol", {"type": "string", "const": "resumable"}, required=True
            ),
            _query("upload_id", _UPLOAD_ID),
            _header(
                "X-Goog-Upload-Command",
                {"type": "string", "enum": ["start", *_CHUNK_COMMANDS]},
                required=True,
            ),
            _header("X-Goog-Upload-Offset", _OFFSET),
            _header(
                "X-Goog-Upload-Header-Content-Length",
                {"type": "integer", "minimum": 0, "maximum": 1 << 20},
            ),
        ],
        body="StartUploadRequest",
        body_required=False,
        errors={"409": "A file of that name exists."},
    )


def _go_on(answer: dict[str, Any]) -> dict[str, Any]:
    shown = _call(
        "files.upload.chunk",
        "Goes on with an upload; POST does the same. Its id is its secret: no key is needed.",
        answer,
        parameters=[
            _query("upload_id", _UPLOAD_ID, required=True),
            _header(
                "X-Goog-Upload-Command",
                {"type": "string", "enum": list(_CHUNK_COMMANDS)},
                required=True,
            ),
            _header("X-Goog-Upload-Offset", _OFFSET),
        ],
        errors={
            "404": "There is no such upload.",
            "408": "The body came too slowly.",
            "409": "A file of that name exists, or another request goes on with this upload.",
        },
    )
    shown["security"] = []
    shown["requestBody"] = {
        "required": False,
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
    return shown


def _own_paths() -> dict[str, Any]:
    def plain(name: str, summary: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "operationId": name,
            "summary": summary,
            "responses": {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}},
        }

    health = plain("healthz", "Asks the worker whether it works.", _JSON, ref("Health"))
    health["responses"]["503"] = {
        "description": "It does not, and why.",
        "content": {_JSON: {"schema": ref("Trouble")}},
    }
    metrics = plain("metrics", "Figures for Prometheus.", "text/plain", {"type": "string"})
    own = plain("openapi", "This description.", _JSON, {"type": "object"})
    for shown, errors in ((metrics, {**_ALWAYS, **_KEY}), (health, _PLACE), (own, _PLACE)):
        for code, words in errors.items():
            shown["responses"][code] = _refusal(words)
    return {
        "/healthz": {"get": {**health, "security": []}},
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": {**own, "security": []}},
    }
