"""The probe: a first small batch that proves key, model, vectors and cost before the rest is sent.

Planning cuts it, the journal's gate holds the rest back until it is decided, and what it finds
wrong ends the run with one error.
"""

import logging
from itertools import takewhile
from typing import Final

from embatch.runs.choosing import EMPTY_TEXT
from embatch.runs.step import Step
from embatch.runs.tokens import SPECIAL_TOKENS
from embatch.types.batch import Limits

PROBE_ROWS: Final = 20
WORTH_ROWS: Final = 200
"""A run of fewer rows is little more than a probe itself."""
log = logging.getLogger("embatch.runs")


def probe_rows(limits: Limits, to_embed: int, *, probe: bool) -> int | None:
    """Rows of a run's probe, of which so many are to be bought; None where none is needed."""
    return PROBE_ROWS if limits.billed and probe and to_embed >= WORTH_ROWS else None


def refusal(step: Step) -> str | None:
    """Why a batch must not be sent after what became of the probe; None when it may be."""
    last = _probe_row(step)
    if last is None or step.batch.row_min <= last:
        return None
    journal, run_id = step.context.journal, step.batch.run_id
    if journal.batches.parts_between(run_id, 0, last):
        return None
    failures = takewhile(lambda failure: failure.row <= last, journal.failures(run_id))
    first = next((failure for failure in failures if failure.code != EMPTY_TEXT), None)
    if first is None:
        return None
    return (
        f"the probe failed: no row of the first {PROBE_ROWS} got a vector, so nothing else is "
        f"sent ({first.code}: {first.message}). Mend the cause, and type the run's command again "
        "with --no-probe"
    )


def untrue_cost(step: Step, tokens: int) -> str | None:
    """Why the run's costs cannot be foreseen, by the `tokens` that the probe was billed."""
    batch, last = step.batch, _probe_row(step)
    if last is None or batch.row_min > last:
        return None
    most = batch.tokens_bound + SPECIAL_TOKENS * batch.items
    if tokens > most:
        return (
            f"the probe failed: {batch.items} rows were billed {tokens:,} tokens, and at most "
            f"{most:,} can be in them, so that neither quote nor --max-cost would hold; if you "
            "accept that, type the run's command again with --no-probe"
        )
    log.info(
        "probe of run %s: %d rows, %d tokens reported, %d estimated",
        *(batch.run_id, batch.items, tokens, batch.tokens_estimated),
    )
    return None


def _probe_row(step: Step) -> int | None:
    """The last row of the run's probe; None without one."""
    context = step.context
    if not context.config.probe or not context.provider.limits.billed:
        return None
    last = (context.run().plan or {}).get("probe_row")
    return None if last is None else int(last)
