"""docs/cost.md tells the prices and figures of the table, and no others."""

import re
from pathlib import Path

from embatch.types.models import MODELS, READ

PAGE = (Path(__file__).parents[3] / "docs" / "cost.md").read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_tells_every_price_and_its_date() -> None:
    """A model with a price has its line; one without has none."""
    told = {
        name.strip(): (interactive, batch)
        for names, interactive, batch in rows_after("Prices")
        for name in names.split(",")
    }
    assert told == {
        model.name: (
            f"${model.usd_per_million:.2f}",
            f"${model.batch_usd_per_million:.3f}".rstrip("0").ljust(5, "0"),
        )
        for model in MODELS.values()
        if model.usd_per_million is not None
    }
    assert f"read on {READ}" in PAGE


def test_the_page_tells_the_quality_and_size_of_dimensions() -> None:
    """As the table has them; sizes are those of float32."""
    told = [
        (int(dims), float(mteb), int(share.removesuffix(" %")), float(size.removesuffix(" GB")))
        for dims, mteb, share, size in rows_after("Which dimensions")
    ]
    model = MODELS["gemini-embedding-001"]
    assert told == [
        (dims, mteb, round(100 * dims / model.dims), round(4 * dims * 1e6 / 1e9, 1))
        for dims, mteb in model.mteb.items()
    ]
    gap = model.mteb[3072] - model.mteb[768]
    assert re.search(rf"768 keeps all but {gap:.2f} points", PAGE)
