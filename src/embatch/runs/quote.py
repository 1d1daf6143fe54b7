"""What a run would take: rows, tokens, batches, money, time and space. Nothing is submitted."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embatch.datasets.digests import Digest, read_digest
from embatch.datasets.source import Source
from embatch.providers.base import Provider
from embatch.runs.choosing import Chooser
from embatch.runs.plan import Cutter
from embatch.runs.reuse import old_records, require_reusable

SAMPLE_TEXTS = 64
"""Texts that are embedded to measure the pace of the local engine."""
BATCH_WORTH_ROWS = 200
"""Under so many rows the interactive API is as good: the provider's batches start slowly
(spec.md section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A run before it is one. Counts are rows."""

    rows: int
    empty: int
    """Rows without a text: they will fail, nothing is sent."""
    copies: int
    """Rows whose text stands in an earlier row: embedded once."""
    reused: int
    """Rows whose vector an earlier output has."""
    to_embed: int
    text_bytes: int
    """UTF-8 bytes of the texts to embed."""
    tokens: int
    """Estimated, of the texts to embed."""
    batches: int
    cost_usd: float | None
    """None where embedding is billed and nobody has counted it."""
    saved_usd: float | None
    """Against the same provider's interactive price; None as above."""
    texts_per_s: float | None
    """Measured on a sample; None where the provider sets the pace."""
    sample_texts: int
    seconds: float | None
    """Estimated from `texts_per_s`."""
    vector_bytes: int
    """Of all vectors on disk."""
    provider: str
    model: str
    dims: int
    precision: str | None

    @property
    def too_small(self) -> bool:
        """The interactive API is as good for so few rows."""
        return self.to_embed < BATCH_WORTH_ROWS

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**asdict(self), "too_small": self.too_small}


def quote_source(
    source: Source,
    provider: Provider,
    *,
    max_batch_items: int | None = None,
    max_batch_tokens: int | None = None,
    reuse: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Quote:
    """Reads the source twice, as planning does, and cuts it into batches that are thrown away.

    On a provider that bills nothing, a sample of the texts is embedded to measure its pace.
    """
    space = provider.space
    if reuse is not None:
        require_reusable(reuse, space)
    with tempfile.TemporaryDirectory(prefix="embatch-plan-") as scratch:
        old = None if reuse is None else old_records(reuse)
        digest = read_digest(source, Path(scratch) / "digest", reuse=old)
        limits = replace(
            provider.limits,
            max_batch_items=min(provider.limits.max_batch_items, max_batch_items or 2**31),
            max_batch_tokens=min(provider.limits.max_batch_tokens, max_batch_tokens or 2**62),
        )
        cut = _cut(source, digest, Cutter(limits))
    pace = None if limits.billed else _measure(provider, cut.sample, clock)
    return Quote(
        rows=digest.rows,
        empty=digest.empty,
        copies=digest.copy_rows,
        reused=digest.reused_rows,
        to_embed=digest.embed_rows,
        text_bytes=digest.embed_bytes,
        tokens=cut.tokens,
        batches=cut.batches,
        cost_usd=None if limits.billed else 0.0,
        saved_usd=None if limits.billed else 0.0,
        texts_per_s=pace,
        sample_texts=len(cut.sample),
        seconds=digest.embed_rows / pace if pace else None,
        vector_bytes=4 * space.dims * (digest.rows - digest.empty),
        provider=space.provider,
        model=space.model,
        dims=space.dims,
        precision=space.precision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cuts:
    batches: int
    tokens: int
    sample: list[str]
    """Texts from places spread evenly over those to embed."""


def _cut(source: Source, digest: Digest, cutter: Cutter) -> _Cuts:
    chooser = Chooser(digest, (), None)
    wanted = np.unique(np.linspace(0, max(0, digest.embed_rows - 1), SAMPLE_TEXTS).astype(np.int64))
    batches = tokens = seen = 0
    sample: list[str] = []
    for block in source.read():
        table, _ = chooser.to_embed(block.first_row, block.batch)
        low, high = np.searchsorted(wanted, [seen, seen + table.num_rows])
        sample += table["text"].take(wanted[low:high] - seen).to_pylist()
        seen += table.num_rows
        for cut in cutter.add(table):
            batches, tokens = batches + 1, tokens + cut.tokens
    for cut in cutter.rest():
        batches, tokens = batches + 1, tokens + cut.tokens
    return _Cuts(batches=batches, tokens=tokens, sample=sample)


def _measure(provider: Provider, sample: list[str], clock: Callable[[], float]) -> float | None:
    """Texts a second. The first call, which makes the engine warm, does not count."""
    if not sample:
        return None
    provider.embed(sample[:4])
    start = clock()
    provider.embed(sample)
    return len(sample) / max(1e-6, clock() - start)
