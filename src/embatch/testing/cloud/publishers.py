"""Vertex AI: models and interactive calls, with a project or in express mode; and access tokens."""

from typing import Any, Final

from embatch.testing.cloud.answers import (
    Answer,
    ApiError,
    Request,
    field_of,
    json_answer,
    objects_of,
)
from embatch.testing.cloud.core import VERSION, Core, route
from embatch.testing.cloud.embeds import EmbeddedRow, card_for, embed_now, usage_of
from embatch.testing.cloud.gemini import MOST_CONTENTS
from embatch.testing.cloud.models import MODELS, ModelCard, count_tokens
from embatch.testing.cloud.rows import RowRequest, content_text, read_instance, read_request

_MOST_INSTANCES: Final = 250
_MOST_TOKENS: Final = 20_000


def _card(core: Core, request: Request, method: str) -> ModelCard:
    card = card_for(core, request.names["model"], method, api="vertex")
    location = request.names.get("location", "global")
    core.door.facts["location"] = location
    return card


def _check_length(rows: list[RowRequest], card: ModelCard, *, cut: bool) -> None:
    if not cut and any(count_tokens(row.text) > card.max_tokens for row in rows):
        raise ApiError(400, f"The input is longer than {card.max_tokens} tokens.")


def _predict(core: Core, request: Request) -> Answer:
    card = _card(core, request, "predict")
    body = request.json()
    instances = objects_of(body, "instances")
    parameters = field_of(body, "parameters", {})
    if not card.legacy and (card.name != "gemini-embedding-001" or len(instances) != 1):
        raise ApiError(400, f"{card.name} takes one instance for :predict, or :embedContent.")
    if not 1 <= len(instances) <= _MOST_INSTANCES:
        raise ApiError(400, f"Between 1 and {_MOST_INSTANCES} instances are required.")
    dims = field_of(parameters, "outputDimensionality")
    wanted = [read_instance(instance, card, dims) for instance in instances]
    _check_length(wanted, card, cut=field_of(parameters, "autoTruncate", True))
    if sum(count_tokens(row.text, core.settings.bytes_per_token) for row in wanted) > _MOST_TOKENS:
        raise ApiError(400, f"The request holds more than {_MOST_TOKENS} tokens.")
    predictions = [
        {
            "embeddings": {
                "values": row.values,
                "statistics": {"token_count": row.tokens, "truncated": row.truncated},
            }
        }
        for row in embed_now(core, wanted, card)
    ]
    characters = sum(len("".join(row.text.split())) for row in wanted)
    return json_answer(
        {"predictions": predictions, "metadata": {"billableCharacterCount": characters}}
    )


def _gemini_only(card: ModelCard) -> None:
    if card.legacy:
        raise ApiError(400, f"{card.name} takes :predict.")


def _read(body: Any, card: ModelCard) -> RowRequest:
    wanted = read_request(body, card)
    config = field_of(body, "embedContentConfig", {})
    _check_length([wanted], card, cut=field_of(config, "autoTruncate", True))
    return wanted


def _embedding(row: EmbeddedRow) -> dict[str, Any]:
    return {"values": row.values}


def _embed_one(core: Core, request: Request) -> Answer:
    card = _card(core, request, "embedContent")
    _gemini_only(card)
    rows = embed_now(core, [_read(request.json(), card)], card)
    shown: dict[str, Any] = {"embedding": _embedding(rows[0])} if rows else {}
    if rows and rows[0].truncated:
        shown["truncated"] = True
    return json_answer({**shown, **usage_of(core, rows)})


def _embed_many(core: Core, request: Request) -> Answer:
    card = _card(core, request, "batchEmbedContents")
    _gemini_only(card)
    requests = objects_of(request.json(), "requests")
    if not 1 <= len(requests) <= MOST_CONTENTS:
        raise ApiError(400, "Between 1 and 100 requests can be in one batch.")
    rows = embed_now(core, [_read(one, card) for one in requests], card)
    return json_answer({"embeddings": [_embedding(row) for row in rows], **usage_of(core, rows)})


def _count(core: Core, request: Request) -> Answer:
    card = _card(core, request, "countTokens")
    body = request.json()
    if card.legacy:
        texts = [str(instance.get("content", "")) for instance in objects_of(body, "instances")]
    else:
        texts = [content_text(content) for content in objects_of(body, "contents")]
    if not texts:
        needed = "instances" if card.legacy else "contents"
        raise ApiError(400, f"{needed} is required to count tokens of {card.name}.")
    total = sum(count_tokens(text, core.settings.bytes_per_token) for text in texts)
    characters = sum(len("".join(text.split())) for text in texts)
    return json_answer({"totalTokens": total, "totalBillableCharacters": characters})


def _list_models(core: Core, request: Request) -> Answer:
    del core, request
    names = [card.name for card in MODELS.values() if card.on_vertex]
    return json_answer({"publisherModels": [_model_json(name) for name in names]})


def _get_model(core: Core, request: Request) -> Answer:
    del core
    name = request.names["model"]
    if name not in MODELS or not MODELS[name].on_vertex:
        raise ApiError(404, f"Publisher Model {name} is not found.")
    return json_answer(_model_json(name))


def _model_json(name: str) -> dict[str, Any]:
    return {"name": f"publishers/google/models/{name}", "versionId": "default"}


def _token(core: Core, request: Request) -> Answer:
    request.body.drain()
    lifetime_s = core.settings.token_lifetime_s
    return json_answer(
        {
            "access_token": core.issue_token(lifetime_s),
            "expires_in": lifetime_s,
            "token_type": "Bearer",
        }
    )


_MODELS: Final = (
    VERSION + "(?:/projects/{project}/locations/{location})?" + "/publishers/google/models"
)
_MODEL: Final = _MODELS + "/{model}"
ROUTES: Final = (
    route("POST", _MODEL + ":predict", "vertex.predict", _predict, "vertex"),
    route("POST", _MODEL + ":embedContent", "vertex.embedContent", _embed_one, "vertex"),
    route(
        "POST", _MODEL + ":batchEmbedContents", "vertex.batchEmbedContents", _embed_many, "vertex"
    ),
    route("POST", _MODEL + ":countTokens", "vertex.countTokens", _count, "vertex"),
    route("GET", _MODELS, "vertex.models.list", _list_models, "vertex"),
    route("GET", _MODEL, "vertex.models.get", _get_model, "vertex"),
    route("POST", "/token", "oauth.token", _token, "oauth", keyless=True),
)
