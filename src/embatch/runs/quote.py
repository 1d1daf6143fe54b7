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
from embatch.runs.accounts import require_priced
from embatch.runs.choosing import Chooser
from embatch.runs.config import Audit
from embatch.runs.cost import Price, open_cutter, price_of
from embatch.runs.plan import Cut, Cutter
from embatch.runs.probe import probe_rows
from embatch.runs.reuse import old_records, require_reusable
from embatch.runs.sampling import rows_to_audit
from embatch.runs.tokens import estimate_tokens

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
    """Estimated, audits included; None where nobody knows the price."""
    audit_usd: float | None
    """The part of it that audits take, at the interactive price."""
    most_usd: float | None
    """What it cannot exceed when everything is bought once."""
    saved_usd: float | None
    """Against every row at the same provider's interactive price; None as above."""
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
    max_cost_usd: float | None = None,
    audit: Audit = "off",
    probe: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Quote:
    """Reads the source twice, as planning does, and cuts it into batches that are thrown away.

    On a provider that bills nothing, a sample of the texts is embedded to measure its pace.
    """
    space = provider.space
    require_priced(space, max_cost_usd)
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
        cutter = open_cutter(
            limits,
            space,
            max_cost_usd=max_cost_usd,
            text_bytes=digest.embed_bytes,
            first_items=probe_rows(limits, digest.embed_rows, probe=probe),
        )
        cut = _cut(source, digest, cutter, audit if limits.billed else "off")
    pace = None if limits.billed else _measure(provider, cut.sample, clock)
    money = _money(price_of(space), cut, digest)
    return Quote(
        rows=digest.rows,
        empty=digest.empty,
        copies=digest.copy_rows,
        reused=digest.reused_rows,
        to_embed=digest.embed_rows,
        text_bytes=digest.embed_bytes,
        tokens=cut.tokens,
        batches=cut.batches,
        cost_usd=money.cost,
        audit_usd=money.audit,
        most_usd=money.most,
        saved_usd=money.saved,
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
    bound: int
    """The most tokens that can be billed."""
    audit_tokens: int
    """Estimated, of the rows that are embedded again."""
    audit_bound: int
    sample: list[str]
    """Texts from places spread evenly over those to embed."""


def _cut(source: Source, digest: Digest, cutter: Cutter, audit: Audit) -> _Cuts:
    chooser = Chooser(digest, (), None)
    wanted = np.unique(np.linspace(0, max(0, digest.embed_rows - 1), SAMPLE_TEXTS).astype(np.int64))
    made: list[tuple[int, int, int, int]] = []
    seen = 0
    sample: list[str] = []
    for block in source.read():
        table, _ = chooser.to_embed(block.first_row, block.batch)
        low, high = np.searchsorted(wanted, [seen, seen + table.num_rows])
        sample += table["text"].take(wanted[low:high] - seen).to_pylist()
        seen += table.num_rows
        made += [_figures(cut, audit) for cut in cutter.add(table)]
    made += [_figures(cut, audit) for cut in cutter.rest()]
    totals = [sum(column) for column in zip(*made, strict=True)] or [0, 0, 0, 0]
    tokens, bound, audit_tokens, audit_bound = totals
    return _Cuts(
        batches=len(made),
        tokens=tokens,
        bound=bound,
        audit_tokens=audit_tokens,
        audit_bound=audit_bound,
        sample=sample,
    )


def _figures(cut: Cut, audit: Audit) -> tuple[int, int, int, int]:
    """Tokens of a batch and of its audit, each as estimated and at most."""
    items = cut.items.num_rows
    audited = rows_to_audit(audit, items)
    most = min(cut.tokens_bound, audited * cut.item_bound)
    return cut.tokens, cut.tokens_bound, cut.tokens * audited // items, most


@dataclass(frozen=True, slots=True, kw_only=True)
class _Money:
    cost: float | None = None
    audit: float | None = None
    most: float | None = None
    saved: float | None = None


def _money(price: Price | None, cut: _Cuts, digest: Digest) -> _Money:
    if price is None:
        return _Money()
    batches, audit = price.of_batch(cut.tokens), price.of_calls(cut.audit_tokens)
    unsent = np.array([digest.saved_bytes], dtype=np.int64)
    spared = int(estimate_tokens(unsent, 2**62)[0]) if digest.saved_bytes else 0
    return _Money(
        cost=batches + audit,
        audit=audit,
        most=price.of_batch(cut.bound) + price.of_calls(cut.audit_bound),
        saved=price.of_calls(cut.tokens + spared) - batches - audit,
    )


def _measure(provider: Provider, sample: list[str], clock: Callable[[], float]) -> float | None:
    """Texts a second. The first call, which makes the engine warm, does not count."""
    if not sample:
        return None
    provider.embed(sample[:4])
    start = clock()
    provider.embed(sample)
    return len(sample) / max(1e-6, clock() - start)
