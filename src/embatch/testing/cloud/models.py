"""The models that the fake cloud offers, and what it knows of each."""

from dataclasses import dataclass
from typing import Final

UNLISTED_MODEL: Final = "sentence-vectors-9"
"""A model that no client has heard of, on both APIs."""
CHARS_PER_TOKEN: Final = 4
"""The fake tokenizer: a token is this many UTF-8 bytes, begun counts as full."""

TASK_TYPES: Final = frozenset(
    {
        "TASK_TYPE_UNSPECIFIED",
        "RETRIEVAL_QUERY",
        "RETRIEVAL_DOCUMENT",
        "SEMANTIC_SIMILARITY",
        "CLASSIFICATION",
        "CLUSTERING",
        "QUESTION_ANSWERING",
        "FACT_VERIFICATION",
        "CODE_RETRIEVAL_QUERY",
    }
)

_REGIONS_001: Final = frozenset(
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
_REGIONS_2: Final = frozenset({"global", "us", "eu"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model of the fake cloud."""

    name: str
    """Bare name, without `models/`."""
    full_dims: int = 3072
    min_dims: int = 128
    max_tokens: int = 2048
    """Longer texts are cut here, silently."""
    unit_at_any_dims: bool = True
    """False: only the full vector has length 1, shorter ones are its bare prefix."""
    reads_task: bool = True
    """Task type and title change the vector."""
    embeds: bool = True
    on_gemini: bool = True
    on_vertex: bool = True
    legacy: bool = False
    """Vertex rows are flat `content`, interactive calls go to `:predict`."""
    regions: frozenset[str] | None = None
    """Vertex locations that batch it, None for all."""

    @property
    def methods(self) -> list[str]:
        """What `models.list` says it supports."""
        if self.embeds:
            return ["embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent"]
        return ["generateContent", "countTokens", "batchGenerateContent"]


_LEGACY: Final = {
    "full_dims": 768,
    "min_dims": 1,
    "on_gemini": False,
    "legacy": True,
}

MODELS: Final[dict[str, ModelCard]] = {
    card.name: card
    for card in (
        ModelCard(name="gemini-embedding-001", unit_at_any_dims=False, regions=_REGIONS_001),
        ModelCard(name="gemini-embedding-2", max_tokens=8192, reads_task=False, regions=_REGIONS_2),
        ModelCard(
            name="gemini-embedding-2-preview",
            max_tokens=8192,
            reads_task=False,
            regions=_REGIONS_2,
        ),
        ModelCard(name="text-embedding-004", **_LEGACY),  # type: ignore[arg-type] # one dict for three cards
        ModelCard(name="text-embedding-005", **_LEGACY),  # type: ignore[arg-type] # one dict for three cards
        ModelCard(name="text-multilingual-embedding-002", **_LEGACY),  # type: ignore[arg-type] # one dict for three cards
        # Newer than what clients know: in no table of theirs, and its name tells nothing.
        ModelCard(name=UNLISTED_MODEL, full_dims=1024, min_dims=1),
        ModelCard(name="gemini-2.5-flash", embeds=False),
    )
}


def count_tokens(text: str, bytes_per_token: int = CHARS_PER_TOKEN) -> int:
    """Tokens of `text` by the fake tokenizer: UTF-8 bytes over 4, rounded up, at least 1.

    With another `bytes_per_token` as many as a tokenizer counts that is denser, or less so.
    """
    size_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return max(1, -(-size_bytes // bytes_per_token))


def count_read(read: str, card: ModelCard, bytes_per_token: int) -> int:
    """Tokens that are charged for what `cut_to_limit` left of a text, at most what the model
    reads: where texts are cut does not depend on `bytes_per_token`."""
    return min(card.max_tokens, count_tokens(read, bytes_per_token))


def cut_to_limit(text: str, card: ModelCard) -> tuple[str, bool]:
    """The part of `text` that the model reads, and whether anything was cut off."""
    if count_tokens(text) <= card.max_tokens:
        return text, False
    raw = text.encode("utf-8", "surrogatepass")[: card.max_tokens * CHARS_PER_TOKEN]
    return raw.decode("utf-8", "ignore"), True
