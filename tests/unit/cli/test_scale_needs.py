"""The arithmetic of docs/scale.md, and that the page shows what it gives."""

from pathlib import Path

import pytest
from benchmarks.scale_needs import Load, Measured, needs

PAGE = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
MEASURED = Measured(
    transactions_per_batch=45.7,
    statements_s_per_batch=0.15,
    journal_bytes_per_batch=13_600,
    transactions_per_s=381,
)


@pytest.mark.parametrize(
    ("texts", "pace", "dims", "step_s", "column"),
    [
        (10**8, 2e3, 768, 5, 1),
        (10**9, 2e3, 768, 5, 2),
        (10**8, 2e4, 384, 50, 3),
        (10**9, 2e4, 384, 50, 4),
    ],
)
def test_the_page_shows_what_the_formula_gives(
    texts: int, pace: float, dims: int, step_s: float, column: int
) -> None:
    """Batches, hours, steps at once, transactions a second and the journal's size."""
    load = Load(
        texts=texts,
        texts_per_batch=10_000,
        dims=dims,
        text_bytes=600,
        service_texts_per_s=pace,
        step_s_per_batch=step_s,
    )
    found = needs(load, MEASURED)
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    shown = {row[1].strip(): row[1 + column].strip() for row in rows if len(row) == 7}
    assert shown["batches"] == f"{found.batches:,}"
    assert float(shown["hours"]) == pytest.approx(found.hours, rel=0.05)
    assert int(shown["steps at once, over all workers"]) == found.steps_at_once
    assert shown["transactions a second"] == f"{found.transactions_per_s:.0f}"
    assert shown["journal's load (of one run's turns)"] == f"{found.journal_share:.0%}".replace(
        "%", " %"
    )
    assert float(shown["journal"].split()[0]) == pytest.approx(found.journal_gb, rel=0.05)
    assert float(shown["parts"].split()[0]) == pytest.approx(found.parts_tb, rel=0.05)
