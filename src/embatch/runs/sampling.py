"""Which rows of a batch are audited, how many, and how likely that is to find a misalignment."""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embatch.runs.config import Audit

RAISED_ROWS: Final = 200
"""Rows of each batch to audit in a run that had a mismatch (spec.md section 4.2)."""
LEAST_ROWS: Final = 2
"""Rows of a batch that are audited at least, where it has so many."""
ROWS_FOR_EACH: Final = 100
"""Rows of a batch for each one that is audited: 1 % is the most, where nothing was found."""


def rows_to_audit(audit: Audit, rows: int, *, raised: int | None = None) -> int:
    """How many of a batch's `rows` are embedded again.

    `raised` is what a mismatch elsewhere in the run asks for at least; it heeds no share.
    """
    if audit == "off":
        return 0
    if audit == "all":
        return rows
    wanted = max(LEAST_ROWS, min(audit, rows // ROWS_FOR_EACH))
    return min(rows, max(wanted, raised or 0))


def drawn(seed: str, candidates: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """`rows` of the candidates, each as likely as any other, ascending.

    The same seed draws the same rows: what an audit found is found again after a crash.
    """
    if rows >= len(candidates):
        return np.sort(candidates)
    chance = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    return np.sort(chance.choice(candidates, size=rows, replace=False, shuffle=False))


def chance_of_catching(*, rows: int, wrong: int, sample: int) -> float:
    """How likely a sample of a batch holds one of its `wrong` rows, 0.0 to 1.0.

    Hypergeometric: 1 - C(rows - wrong, sample) / C(rows, sample).
    """
    missed = 1.0
    for taken in range(min(sample, rows)):
        missed *= max(0, rows - wrong - taken) / (rows - taken)
    return 1.0 - missed


def chance_in_a_run(of_each: float, batches: int) -> float:
    """How likely one misaligned batch at least is caught, when `batches` of them are misaligned."""
    return 1.0 - (1.0 - of_each) ** batches
