"""What a number of texts needs: workers, rows, transactions, storage, hours. Pure arithmetic."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one batch costs the journal, as the simulation has measured it."""

    transactions_per_batch: float
    statements_s_per_batch: float
    """Seconds of one connection that the journal's calls of a batch take, planning apart."""
    journal_bytes_per_batch: float
    """On the database's disk, indexes and history included."""
    transactions_per_s: float
    """That one run sustains: its writers take turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be embedded, and how fast the outside lets it be."""

    texts: int
    texts_per_batch: int
    dims: int
    text_bytes: int
    """Of a text on average, UTF-8."""
    service_texts_per_s: float
    """What the quota, or all local engines together, let through."""
    step_s_per_batch: float
    """Seconds that a worker's hands are on a batch: upload, download, join, write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What that takes."""

    batches: int
    hours: float
    """At the service's pace, which everything else must keep up with."""
    transactions: int
    transactions_per_s: float
    journal_share: float
    """Of what one run's turns can bear: 1.0 is full."""
    journal_gb: float
    database_rows: int
    parts_tb: float
    stage_gb: float
    """Texts that lie staged at once, if all of them are planned before the first is done."""
    steps_at_once: int
    """Steps that must run side by side, over all workers."""


ROWS_PER_BATCH = 12
"""Of the journal: a batch, a job, two lines of the ledger, eight events."""


def needs(load: Load, measured: Measured) -> Needs:
    """The formula of docs/scale.md.

    hours = texts / service_texts_per_s / 3600; transactions/s = batches · transactions_per_batch
    / seconds; steps at once = batches · (step_s + statements_s) / seconds, rounded up.
    """
    batches = math.ceil(load.texts / load.texts_per_batch)
    seconds = load.texts / load.service_texts_per_s
    transactions = math.ceil(batches * measured.transactions_per_batch)
    held_s = load.step_s_per_batch + measured.statements_s_per_batch
    return Needs(
        batches=batches,
        hours=seconds / 3600,
        transactions=transactions,
        transactions_per_s=transactions / seconds,
        journal_share=transactions / seconds / measured.transactions_per_s,
        journal_gb=batches * measured.journal_bytes_per_batch / 1e9,
        database_rows=batches * ROWS_PER_BATCH,
        parts_tb=load.texts * load.dims * 4 / 1e12,
        stage_gb=load.texts * load.text_bytes / 1e9,
        steps_at_once=math.ceil(batches * held_s / seconds),
    )
