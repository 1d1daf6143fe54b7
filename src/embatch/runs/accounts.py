"""A run's accounts: what it has bought, what that cost, what was saved, and what is left to buy."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from embatch.errors import InvalidRequestError, TransitionRefusedError
from embatch.journal.ledger import ROUNDING_USD
from embatch.journal.purchases import KindSums, PurchaseKind, dollars
from embatch.journal.records import RunCounts, RunRecord
from embatch.journal.store import Journal
from embatch.runs.cost import FREE, Price, price_of
from embatch.runs.sampling import rows_to_audit
from embatch.types.embedding import Space
from embatch.types.models import READ, SOURCE
from embatch.types.state import RunEvent, RunState

MARGIN: Final = 1.25
"""What is left to buy may cost so many times its estimate, where a cap is proposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What one kind of purchase has come to."""

    rows: int
    tokens: int
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What was not spent, in US dollars. Texts that were not sent count as the average of those
    that were, at the batch price."""

    batch_price: float
    """Against the interactive price of the same tokens."""
    dedupe: float
    """By embedding equal texts once."""
    reuse: float
    """By vectors of an earlier output."""

    @property
    def usd(self) -> float:
        """All of it."""
        return self.batch_price + self.dedupe + self.reuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The money of a run. Dollars are None where nobody knows the price."""

    price: Price | None
    cap_usd: float | None
    """`--max-cost`; None: no cap."""
    spent_usd: float | None
    estimated_usd: float | None
    """The part of `spent_usd` that the service did not count."""
    open_usd: float | None
    """What purchases that are under way may come to at most."""
    kept_usd: float | None
    """What the cap is kept for besides: the most that purchases which the service did not count
    may have cost over their estimates, and that jobs may cost which were held absent."""
    bought: Sums
    """In batches."""
    audits: Sums
    """Rows embedded again at once, to compare."""
    direct: Sums
    """Rows embedded through the interactive API."""
    rows_failed: int
    """Billed rows that gave no usable vector."""
    rows_again: int
    """Rows that were billed more than once."""
    again_why: Mapping[str, int] = field(default_factory=dict)
    """`rows_again` by reason."""
    saved: Saved | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the manifest."""
        price = None
        if self.price is not None and self.price != FREE:
            price = {**asdict(self.price), "source": SOURCE, "read": READ}
        saved = None if self.saved is None else {**asdict(self.saved), "usd": self.saved.usd}
        return {**asdict(self), "price": price, "saved": saved}


def read_accounts(journal: Journal, run: RunRecord, counts: RunCounts) -> Accounts:
    """The run's accounts as its ledger has them now."""
    price = price_of(Space.from_json(dict(run.space)))
    sums = journal.ledger.sums(run.id)
    again = journal.ledger.again(run.id)
    bought, audits = sums.get("batch", KindSums()), sums.get("audit", KindSums())
    direct, known = sums.get("direct", KindSums()), price is not None
    cap, opened = run.config.get("max_cost_usd"), math.fsum(one.usd_open for one in sums.values())
    kept = 0.0 if cap is None else journal.ledger.committed(run.id)[1] - opened

    def total(usd: float) -> float | None:
        return usd if known else None

    return Accounts(
        price=price,
        cap_usd=cap,
        spent_usd=total(math.fsum(one.usd for one in sums.values())),
        estimated_usd=total(math.fsum(one.usd_estimated for one in sums.values())),
        open_usd=total(opened),
        kept_usd=total(kept if kept > ROUNDING_USD else 0.0),
        bought=_summed(bought, known=known),
        audits=_summed(audits, known=known),
        direct=_summed(direct, known=known),
        rows_failed=_failed(sums),
        rows_again=sum(again.values()),
        again_why=again,
        saved=None if price is None else _saved(price, bought, counts),
    )


def cost_and_saving(
    run: RunRecord, sums: Mapping[PurchaseKind, KindSums], counts: RunCounts
) -> tuple[float | None, float | None]:
    """Dollars spent and saved, as `read_accounts` gives them, from sums that are read already."""
    price = price_of(Space.from_json(dict(run.space)))
    if price is None:
        return None, None
    spent = math.fsum(one.usd for one in sums.values())
    return spent, _saved(price, sums.get("batch", KindSums()), counts).usd


def _summed(sums: KindSums, *, known: bool) -> Sums:
    return Sums(rows=sums.rows, tokens=sums.tokens, usd=sums.usd if known else None)


def _failed(sums: Mapping[PurchaseKind, KindSums]) -> int:
    return sum(one.rows_failed for kind, one in sums.items() if kind != "audit")


def _saved(price: Price, bought: KindSums, counts: RunCounts) -> Saved:
    return saved_by(price, bought, copies=counts.copies, reused=counts.reused)


def saved_by(price: Price, bought: KindSums, *, copies: int, reused: int) -> Saved:
    """What a run has not spent that bought so much in batches, and did not buy these rows."""
    tokens_a_row = bought.tokens / bought.rows if bought.rows else 0.0
    of_row = price.of_batch(1) * tokens_a_row
    return Saved(
        batch_price=price.of_calls(bought.tokens) - price.of_batch(bought.tokens),
        dedupe=of_row * copies,
        reuse=of_row * reused,
    )


def require_priced(space: Space, max_cost_usd: float | None) -> None:
    """Raises InvalidRequestError for a cap where nobody knows the price."""
    if max_cost_usd is not None and price_of(space) is None:
        raise InvalidRequestError(
            f"--max-cost {max_cost_usd:g}: the price of {space.model} is not in embatch's table "
            f"(read {READ}), so no cap can be kept; leave it out, or take a model with a price"
        )


def set_cap(journal: Journal, run_id: str, max_cost_usd: float, *, now: float) -> None:
    """Gives a run another cap. What is planned already stays as it is cut."""
    run = journal.get_run(run_id)
    require_priced(Space.from_json(dict(run.space)), max_cost_usd)
    journal.update_run(run.id, now=now, config={**run.config, "max_cost_usd": max_cost_usd})


def stop_over_budget(journal: Journal, run_id: str, why: str, *, now: float) -> bool:
    """Stops a run whose cap bears nothing more. False while it is planned, or when something is
    under way after all."""
    run = journal.get_run(run_id)
    if run.state is not RunState.RUNNING or journal.ledger.may_free(run.id):
        return False
    proposed = enough(journal, run)
    try:
        journal.transition_run(
            run.id,
            RunEvent.BUDGET_REACHED,
            expected=RunState.RUNNING,
            now=now,
            error_code="BudgetExceededError",
            error=f"{why}. Go on with: embatch resume {run.id} --max-cost {proposed}",
        )
        if not journal.ledger.may_free(run.id):
            return True
        # Another process began a smaller batch in this instant: nothing begins from now on.
        journal.transition_run(
            run.id,
            RunEvent.RESUMED,
            expected=RunState.OVER_BUDGET,
            now=now,
            error_code=None,
            error=None,
        )
    except TransitionRefusedError:
        return False
    return False


def enough(journal: Journal, run: RunRecord) -> str:
    """A cap under which the run can probably be finished, as it is typed."""
    price = price_of(Space.from_json(dict(run.space))) or FREE
    left = journal.batches.to_buy(run.id)
    spent, held = journal.ledger.committed(run.id)
    sampled = rows_to_audit(run.config.get("audit", "off"), left.largest, raised=run.audit_rows)
    audited = left.tokens * sampled // max(1, left.largest)
    rest = MARGIN * (price.of_batch(left.tokens) + price.of_calls(audited))
    uncounted = math.fsum(one.usd_estimated for one in journal.ledger.sums(run.id).values())
    if uncounted > spent / 2:  # where the service counts nothing, all stays at the most
        bound = journal.batches.outlook(run.id).unsent_bound
        audited = min(bound, left.batches * sampled * left.item_bound)
        rest = price.of_batch(bound) + price.of_calls(audited)
    # The last batch is bought only where the most that it can cost is left.
    most = price.of_calls(min(left.largest_bound, sampled * left.item_bound))
    rest += price.of_batch(left.largest_bound) + most
    usd = max(spent + held + rest, 1.01 * (run.config.get("max_cost_usd") or 0.0))
    return dollars_up(usd)


def dollars_up(usd: float) -> str:
    """Dollars with three figures or two decimals, rounded up, without the sign."""
    decimals = 2 if usd <= 0.0 else max(2, 2 - math.floor(math.log10(usd)))
    scale = 10.0**decimals
    return f"{math.ceil(usd * scale) / scale:.{decimals}f}"


def summary(accounts: Accounts) -> list[str]:
    """The accounts for people, in one or two lines."""
    if accounts.spent_usd is None or accounts.saved is None:
        rows = f"{accounts.bought.rows:,} rows, {accounts.bought.tokens:,} tokens bought"
        return [f"{rows}; the price is not known{_again(accounts)}"]
    parts = [f"{dollars(accounts.spent_usd)} spent"]
    if accounts.cap_usd is not None:
        parts[0] += f" of {dollars(accounts.cap_usd)}"
    if accounts.open_usd:
        parts.append(f"at most {dollars(accounts.open_usd)} under way")
    parts.append(f"{dollars(accounts.saved.usd)} saved")
    lines = [", ".join(parts)]
    notes = []
    if accounts.kept_usd:
        notes.append(f"{dollars(accounts.kept_usd)} kept for what may have cost more")
    if accounts.estimated_usd:
        notes.append(f"{dollars(accounts.estimated_usd)} of it estimated")
    if accounts.audits.rows:
        notes.append(f"{accounts.audits.rows:,} rows audited")
    if accounts.direct.rows:
        notes.append(f"{accounts.direct.rows:,} rows at the interactive price")
    if accounts.rows_failed:
        notes.append(f"{accounts.rows_failed:,} failed rows paid for")
    if accounts.rows_again:
        notes.append(_again(accounts).removeprefix("; "))
    return [*lines, *([", ".join(notes)] if notes else [])]


def _again(accounts: Accounts) -> str:
    if not accounts.rows_again:
        return ""
    why = ", ".join(f"{count:,} {reason}" for reason, count in accounts.again_why.items())
    return f"; {accounts.rows_again:,} rows bought twice ({why.replace('_', ' ')})"
