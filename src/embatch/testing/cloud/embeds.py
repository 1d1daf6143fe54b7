"""Embedding at once: what the interactive calls of both APIs share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from embatch.testing.cloud.answers import ApiError
from embatch.testing.cloud.core import Core
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.models import MODELS, ModelCard, count_read, cut_to_limit
from embatch.testing.cloud.rows import RowRequest
from embatch.testing.cloud.vectors import row_seed, text_digest, write_vectors


@dataclass(frozen=True, slots=True)
class EmbeddedRow:
    """One vector, written, and what it cost."""

    values: orjson.Fragment
    """Its JSON array."""
    tokens: int
    truncated: bool


def card_for(core: Core, model: str, method: str, *, api: str) -> ModelCard:
    """The card of a model that knows this method; else the 404 that Google gives."""
    card = MODELS.get(model)
    known = card is not None and (card.on_gemini if api == "gemini" else card.on_vertex)
    core.door.facts["model"] = model
    if card is None or not known or not card.embeds:
        raise ApiError(
            404,
            f"models/{model} is not found for API version v1beta, or is not supported for"
            f" {method}. Call ListModels to see the list of available models and their"
            " supported methods.",
        )
    return card


def embed_now(core: Core, rows: list[RowRequest], card: ModelCard) -> list[EmbeddedRow]:
    """Vectors of the rows in order, charged at the full price. ApiError 400 for an empty text."""
    facts = core.door.facts
    if any(not row.text for row in rows):
        raise ApiError(400, "content is empty")
    cut = [cut_to_limit(row.text, card) for row in rows]
    if any(was_cut for _, was_cut in cut) and core.board.strike(FaultKind.OVER_LONG_REFUSED, facts):
        raise ApiError(400, "The input is longer than the model reads.")
    ignored = core.board.strike(FaultKind.DIMS_IGNORED, facts)
    digests = [text_digest(row.text, card.name) for row in rows]
    embedded = []
    for row, digest, (text, was_cut) in zip(rows, digests, cut, strict=True):
        seed = row_seed(digest, card.name, row.task_type, row.title)
        dims = card.full_dims if ignored else row.dims
        values = write_vectors(np.array([seed], dtype=np.uint64), card.name, dims)[0]
        tokens = count_read(text, card, core.settings.bytes_per_token)
        embedded.append(EmbeddedRow(orjson.Fragment(values), tokens, was_cut))
    core.ledger.charge_interactive(digests, card.name, sum(row.tokens for row in embedded))
    fewer = core.board.strike(FaultKind.FEWER_VECTORS, facts)
    return embedded[: -int(fewer.arg("count"))] if fewer else embedded


def usage_of(core: Core, rows: list[EmbeddedRow]) -> dict[str, Any]:
    """`usageMetadata` of an answer, unless it is left out."""
    if core.board.strike(FaultKind.USAGE_MISSING, core.door.facts):
        return {}
    tokens = sum(row.tokens for row in rows)
    return {
        "usageMetadata": {
            "promptTokenCount": tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
        }
    }
