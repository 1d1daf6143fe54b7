"""What is known of the cloud models, in one table."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from embatch.types.task import TaskType

SOURCE: Final = "ai.google.dev/gemini-api/docs: embeddings, pricing; Vertex AI docs"
READ: Final = "2026-11-01"

_log = logging.getLogger(__name__)

_V2_PREFIXES: Final[Mapping[TaskType, str]] = {
    TaskType.RETRIEVAL_DOCUMENT: "title: {title} | text: {text}",
    TaskType.RETRIEVAL_QUERY: "task: search result | query: {text}",
    TaskType.QUESTION_ANSWERING: "task: question answering | query: {text}",
    TaskType.FACT_VERIFICATION: "task: fact checking | query: {text}",
    TaskType.CODE_RETRIEVAL_QUERY: "task: code retrieval | query: {text}",
    TaskType.CLASSIFICATION: "task: classification | query: {text}",
    TaskType.CLUSTERING: "task: clustering | query: {text}",
    TaskType.SEMANTIC_SIMILARITY: "task: sentence similarity | query: {text}",
}
_MTEB_001: Final[Mapping[int, float]] = {
    128: 63.31, 256: 66.19, 512: 67.55, 768: 67.99, 1536: 68.17, 3072: 68.17,
}  # fmt: skip
_LOCATIONS_001: Final = frozenset(
    {
        "us-central1",
        "us-east1",
        "us-east4",
        "us-west1",
        "us-west4",
        "europe-west1",
        "europe-west4",
    }
)
"""Vertex AI docs, batch inference for embeddings; of two copies one alone has us-east1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModel:
    """One embedding model of a cloud."""

    name: str
    dims: int
    """Length of its vectors when nothing else is asked for."""
    min_dims: int
    max_tokens: int
    """Tokens read of a text; what follows is cut by the service."""
    normalized_at: frozenset[int] | None
    """Lengths at which vectors have length 1; None: at every length."""
    prefixes: Mapping[TaskType, str] = field(default_factory=dict)
    """The text to write around an input, by task; empty where the service takes parameters."""
    flat_rows: bool = False
    """Vertex: rows are a flat `content`, interactive calls go to `:predict`."""
    usd_per_million: float | None = None
    """US dollars a million input tokens, interactive."""
    batch_usd_per_million: float | None = None
    """US dollars a million input tokens, in batches."""
    mteb: Mapping[int, float] = field(default_factory=dict)
    """MTEB mean by dimensions."""
    batch_locations: frozenset[str] = frozenset()
    """Vertex AI locations that take batches of it; empty where that is not known."""
    known: bool = True
    """False for a model that is not in the table."""

    def is_normalized(self, dims: int) -> bool:
        """Vectors of this length come with length 1."""
        return self.normalized_at is None or dims in self.normalized_at


def _legacy(name: str) -> EmbeddingModel:
    return EmbeddingModel(
        name=name, dims=768, min_dims=1, max_tokens=2048, normalized_at=None, flat_rows=True
    )


def _second(name: str) -> EmbeddingModel:
    return EmbeddingModel(
        name=name,
        dims=3072,
        min_dims=128,
        max_tokens=8192,
        normalized_at=None,
        prefixes=_V2_PREFIXES,
        usd_per_million=0.20,
        batch_usd_per_million=0.10,
        batch_locations=frozenset({"global", "us", "eu"}),
    )


MODELS: Final[Mapping[str, EmbeddingModel]] = {
    model.name: model
    for model in (
        EmbeddingModel(
            name="gemini-embedding-001",
            dims=3072,
            min_dims=128,
            max_tokens=2048,
            normalized_at=frozenset({3072}),
            usd_per_million=0.15,
            batch_usd_per_million=0.075,
            mteb=_MTEB_001,
            batch_locations=_LOCATIONS_001,
        ),
        _second("gemini-embedding-2"),
        _second("gemini-embedding-2-preview"),
        _legacy("text-embedding-004"),
        _legacy("text-embedding-005"),
        _legacy("text-multilingual-embedding-002"),
    )
}
"""The table, by name. Sources and date: `SOURCE`, `READ`."""


def bare_model_name(name: str) -> str:
    """The model's name without the folders that a service writes before it."""
    return name if name.startswith("tunedModels/") else name.rpartition("models/")[2]


def find_model(name: str) -> EmbeddingModel:
    """What is known of a model. An unknown one works like gemini-embedding-001, with a warning,
    once in a process."""
    bare = bare_model_name(name)
    return MODELS.get(bare) or _unlisted(bare)


@lru_cache(maxsize=256)
def _unlisted(name: str) -> EmbeddingModel:
    _log.warning(
        "model %s is not in embatch's table (read %s): limits, prices and task handling of "
        "gemini-embedding-001 are assumed",
        name,
        READ,
    )
    legacy = name.startswith(("text-embedding-", "text-multilingual-embedding-"))
    return EmbeddingModel(
        name=name,
        dims=3072,
        min_dims=1,
        max_tokens=2048,
        normalized_at=frozenset(),
        flat_rows=legacy,
        known=False,
    )
