"""The quote of `embatch plan`: asked of the run's own code, shown as a small table."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from embatch.cli import figures
from embatch.cli.session import Session

if TYPE_CHECKING:
    from embatch.runs.config import Audit
    from embatch.runs.quote import Quote


def quote_inputs(
    session: Session,
    inputs: Sequence[str],
    *,
    provider: str | None,
    model: str | None,
    text: str | None,
    key: str | None,
    keep: Sequence[str],
    dims: int | None,
    task_type: str | None,
    precision: str,
    max_batch_items: int | None,
    max_batch_tokens: int | None,
    reuse: str | None,
    max_cost_usd: float | None = None,
    audit: "Audit" = "off",
    probe: bool = False,
) -> "Quote":
    """The quote of these inputs. What it needs on disk is gone when it returns."""
    from embatch.config import load_settings
    from embatch.datasets.source import open_source
    from embatch.hooks import Hooks
    from embatch.providers.opening import open_provider
    from embatch.runs.quote import quote_source

    settings, hooks = load_settings(), session.hooks or Hooks()
    with tempfile.TemporaryDirectory(prefix="embatch-plan-") as scratch:
        source = open_source(inputs, text=text, key=key, keep=keep, spool=Path(scratch) / "spool")
        opened = open_provider(
            provider or settings.provider or "local",
            model=model or settings.model,
            precision=precision,
            dims=dims,
            task_type=task_type,
            folder=settings.home / "service",
            open_engine=hooks.open_engine,
            checkpoint=hooks.checkpoint,
        )
        try:
            return quote_source(
                source,
                opened,
                max_batch_items=max_batch_items,
                max_batch_tokens=max_batch_tokens,
                reuse=reuse,
                max_cost_usd=max_cost_usd,
                audit=audit,
                probe=probe,
            )
        finally:
            opened.close()


def room_at(out: str) -> int | None:
    """Free space on the disk that holds the output `out`, or would; None in an object store."""
    from embatch.storage.places import parse_place

    place = parse_place(out)
    return free_bytes(place) if isinstance(place, Path) else None


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`, or would."""
    path = folder.absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def print_quote(
    session: Session, quote: "Quote", *, free: int | None, max_cost_usd: float | None = None
) -> None:
    """The quote as a table, or as the object of `--json`.

    `free` is the disk's space in bytes, None where there is no disk.
    """
    if session.as_json:
        session.emit(quote.to_json() | {"free_bytes": free})
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for words, value, remark in _lines(quote):
        table.add_row(words, value, remark)
    session.out.print(table)
    if free is not None and quote.vector_bytes > free:
        session.note(
            f"warning: the vectors need {figures.size(quote.vector_bytes)}, "
            f"and the disk has {figures.size(free)} free",
            style="yellow",
        )
    if max_cost_usd is not None and quote.cost_usd and quote.cost_usd > max_cost_usd:
        session.note(
            f"warning: --max-cost {max_cost_usd:g} will stop the run at about "
            f"{max_cost_usd / quote.cost_usd:.0%} of its rows",
            style="yellow",
        )
    if quote.too_small:
        session.say(
            f"Under 100 to 200 rows an interactive API is as good; this is "
            f"{figures.counted(quote.to_embed, 'row')}."
        )


def _cost_line(quote: "Quote") -> tuple[str, str, str]:
    if quote.cost_usd is None or quote.saved_usd is None or quote.most_usd is None:
        return "cost", "?", f"the price of {quote.model} is not known"
    saved = f"{figures.money(quote.saved_usd)} saved against the interactive price"
    if quote.most_usd:
        saved = f"estimated, {figures.money(quote.most_usd)} at most; {saved}"
    return "cost", figures.money(quote.cost_usd), saved


def _lines(quote: "Quote") -> list[tuple[str, str, str]]:
    count = figures.count
    space = " ".join(part for part in (quote.provider, quote.model, quote.precision) if part)
    lines = [
        ("rows", count(quote.rows), ""),
        ("empty", count(quote.empty), "fail without being sent"),
        ("copies", count(quote.copies), "take the vector of the same text elsewhere"),
        ("reused", count(quote.reused), "take the vector of the earlier output"),
        ("to embed", count(quote.to_embed), figures.size(quote.text_bytes) + " of text"),
        ("tokens", count(quote.tokens), "estimated"),
        ("batches", count(quote.batches), ""),
        _cost_line(quote),
    ]
    if quote.audit_usd:
        of_it = "of it, for rows that are embedded again to compare (--audit)"
        lines.append(("audits", figures.money(quote.audit_usd), of_it))
    if quote.seconds is not None and quote.texts_per_s is not None:
        measured = f"{figures.counted(quote.sample_texts, 'text')} of yours"
        pace = f"at {quote.texts_per_s:,.0f} texts/s, measured on {measured}"
        lines.append(("time", figures.duration(quote.seconds), pace))
    lines.append(("vectors", figures.size(quote.vector_bytes), f"{quote.dims} dims, {space}"))
    shown = {"empty": quote.empty, "reused": quote.reused}
    return [line for line in lines if shown.get(line[0], 1)]
