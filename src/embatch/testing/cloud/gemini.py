"""The Gemini API: models and interactive calls."""

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
from embatch.testing.cloud.embeds import card_for, embed_now, usage_of
from embatch.testing.cloud.models import MODELS, ModelCard, count_tokens
from embatch.testing.cloud.pages import cut_page
from embatch.testing.cloud.rows import content_text, read_request

MOST_CONTENTS: Final = 100
_PAGE_DEFAULT: Final = 50
_PAGE_MOST: Final = 1000


def _model_json(card: ModelCard) -> dict[str, Any]:
    return {
        "name": f"models/{card.name}",
        "version": "001",
        "displayName": card.name.replace("-", " ").title(),
        "description": f"{card.name} of the fake cloud",
        "inputTokenLimit": card.max_tokens,
        "outputTokenLimit": 1,
        "supportedGenerationMethods": card.methods,
    }


def _list_models(core: Core, request: Request) -> Answer:
    cards = [card for card in MODELS.values() if card.on_gemini]
    docs = [{"seq": len(cards) - at, **_model_json(card)} for at, card in enumerate(cards)]
    page, token = cut_page(core, request, docs, default=_PAGE_DEFAULT, most=_PAGE_MOST)
    for doc in page:
        del doc["seq"]
    shown: dict[str, Any] = {"models": page} if page else {}
    if token:
        shown["nextPageToken"] = token
    return json_answer(shown)


def _get_model(core: Core, request: Request) -> Answer:
    card = MODELS.get(request.names["model"])
    if card is None or not card.on_gemini:
        raise ApiError(404, f"Model is not found: models/{request.names['model']}.")
    del core
    return json_answer(_model_json(card))


def _embed_one(core: Core, request: Request) -> Answer:
    card = card_for(core, request.names["model"], "embedContent", api="gemini")
    rows = embed_now(core, [read_request(request.json(), card)], card)
    embedding = {"embedding": {"values": rows[0].values}} if rows else {}
    return json_answer({**embedding, **usage_of(core, rows)})


def _embed_many(core: Core, request: Request) -> Answer:
    card = card_for(core, request.names["model"], "batchEmbedContents", api="gemini")
    requests = objects_of(request.json(), "requests")
    if not requests:
        raise ApiError(400, "* BatchEmbedContentsRequest.requests: requests is not specified\n")
    if len(requests) > MOST_CONTENTS:
        raise ApiError(
            400,
            "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n",
        )
    if any(not field_of(one, "model") for one in requests):
        raise ApiError(400, "* BatchEmbedContentsRequest.requests[].model: is not specified\n")
    rows = embed_now(core, [read_request(one, card) for one in requests], card)
    shown = {"embeddings": [{"values": row.values} for row in rows]}
    return json_answer({**shown, **usage_of(core, rows)})


def _count_tokens(core: Core, request: Request) -> Answer:
    model = request.names["model"]
    core.door.facts["model"] = model
    card = MODELS.get(model)
    if card is None or not card.on_gemini:
        raise ApiError(404, f"models/{model} is not found for API version v1beta.")
    body = request.json()
    contents = objects_of(body, "contents") or objects_of(
        field_of(body, "generateContentRequest"), "contents"
    )
    dense = core.settings.bytes_per_token
    total = sum(count_tokens(content_text(content), dense) for content in contents)
    details = [{"modality": "TEXT", "tokenCount": total}]
    return json_answer({"totalTokens": total, "promptTokensDetails": details})


_MODEL: Final = VERSION + "/models/{model}"
ROUTES: Final = (
    route("GET", VERSION + "/models", "models.list", _list_models, "gemini"),
    route("GET", _MODEL, "models.get", _get_model, "gemini"),
    route("POST", _MODEL + ":embedContent", "models.embedContent", _embed_one, "gemini"),
    route(
        "POST", _MODEL + ":batchEmbedContents", "models.batchEmbedContents", _embed_many, "gemini"
    ),
    route("POST", _MODEL + ":countTokens", "models.countTokens", _count_tokens, "gemini"),
)
