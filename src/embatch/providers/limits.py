"""What the clouds take, in one table, and the batches that are cut for them."""

from dataclasses import dataclass
from typing import Final

from embatch.types.batch import Limits
from embatch.types.models import EmbeddingModel

READ: Final = "2026-11-01"
"""When the sources below were read."""
SETTLE_S: Final = 600.0
"""How long an ambiguous create may stay out of the list (spec.md section 4.1)."""
MOST_ROWS: Final = 100_000
"""Rows of a batch of ours where the service takes more: what fails together is bought again
together, and 3072 dims of it are 1.2 GB on disk."""
MOST_IN_FLIGHT: Final = 20
"""Batches of ours under way where the service sets no limit."""
BATCHES_IN_CEILING: Final = 5
"""Batches that fit under the lowest ceiling of tokens, so that it is never idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What a service says that it takes."""

    source: str
    rows: int
    """Rows of one batch."""
    file_bytes: int
    """Bytes of one input file."""
    jobs: int | None = None
    """Unfinished batches of a project; None: no limit."""
    enqueued_tokens: int | None = None
    """Tokens of one model over all unfinished batches, at the lowest tier that has batches."""
    results_kept_s: float | None = None
    """How long results can be read after a job's end; None: they are the project's own objects."""


GEMINI: Final = ServiceLimits(
    source="ai.google.dev/gemini-api/docs: rate-limits (100 batches; embeddings 500,000 tokens "
    "enqueued at tier 1, 5,000,000 at 2, 10,000,000 at 3), batch-api (2 GB a file); rows: no "
    "number is given, other clients stop at 50,000; results: batch-api says 6 weeks and files "
    "48 hours for every file: the shorter one counts",
    rows=50_000,
    file_bytes=2_000_000_000,
    jobs=100,
    enqueued_tokens=500_000,
    results_kept_s=48 * 3600.0,
)
VERTEX: Final = ServiceLimits(
    source="Vertex AI docs, batch inference for embeddings: Gemini embedding models",
    rows=1_000_000,
    file_bytes=1_000_000_000,
)
VERTEX_LEGACY: Final = ServiceLimits(
    source="Vertex AI docs, batch inference for embeddings: text-embedding models",
    rows=30_000,
    file_bytes=1_000_000_000,
)


def service_limits(provider: str, model: EmbeddingModel) -> ServiceLimits:
    """The table's line for a provider and a model."""
    if provider == "gemini":
        return GEMINI
    return VERTEX_LEGACY if model.flat_rows else VERTEX


def batch_limits(
    service: ServiceLimits, model: EmbeddingModel, *, settle_s: float | None
) -> Limits:
    """How batches are cut for a service: by tokens first, where tokens are what is scarce."""
    rows = min(service.rows, MOST_ROWS)
    ceiling = service.enqueued_tokens
    return Limits(
        max_batch_items=rows,
        max_batch_tokens=ceiling // BATCHES_IN_CEILING if ceiling else rows * model.max_tokens,
        max_batch_bytes=service.file_bytes // 2,  # the rest is for what JSON adds
        max_in_flight_batches=service.jobs or MOST_IN_FLIGHT,
        max_item_tokens=model.max_tokens,
        settle_s=SETTLE_S if settle_s is None else settle_s,
        results_kept_s=service.results_kept_s,
        billed=True,
    )
