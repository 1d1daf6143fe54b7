"""What embedding costs: prices, the most that a purchase can come to, and how each is accounted.

Every purchase of a run goes through here. A batch is reserved with the start of its upload
(`reservations`) and settled when its results are read (`spent_on`); what is embedded at once, for
an audit or in place of a batch, goes through `embed_now`. Where nothing is billed nothing is
written.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embatch.errors import (
    AuthenticationError,
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.journal.ledger import Change, reservation
from embatch.journal.purchases import Bought, Purchase, audit_ref, call_ref
from embatch.journal.records import BatchRecord
from embatch.runs.context import RunContext
from embatch.runs.plan import Cutter, item_bounds
from embatch.runs.sampling import rows_to_audit
from embatch.runs.step import Step
from embatch.runs.tokens import DEFAULT_RATE, TokenRate, estimate_tokens
from embatch.types.batch import Limits
from embatch.types.embedding import RowError, Space
from embatch.types.models import MODELS, bare_model_name
from embatch.types.results import Embedded
from embatch.types.state import BatchState

CALL_TEXTS: Final = 100
"""Texts of one interactive call: the services take no more."""
BATCHES_IN_CAP: Final = 8
"""A batch may cost at most this part of the cap."""
MOST_CAPPED_BATCHES: Final = 2_000
"""A small cap cuts a dataset into no more batches than this."""
MISSING: Final = "missing"
"""Code of rows that the results do not speak of."""
BILLED_WITHOUT_VECTOR: Final = frozenset(
    {MISSING, "not_finite", "zero_vector", "wrong_dims", "no_vector", "unreadable"}
)
"""Codes of rows that the service computed, as far as it says, and that are of no use. A row that
the service itself calls failed is not billed."""
_UNBILLED: Final = (
    RateLimitError,
    InvalidRequestError,
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
    ConfigError,
)
"""Errors of a call that was surely not computed. After any other that was sent it may have been."""
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars a million input tokens."""

    batch_usd: float
    interactive_usd: float

    def of_batch(self, tokens: int) -> float:
        """Dollars for so many tokens in batches."""
        return tokens * self.batch_usd / _MILLION

    def of_calls(self, tokens: int) -> float:
        """Dollars for so many tokens through the interactive API."""
        return tokens * self.interactive_usd / _MILLION


FREE: Final = Price(batch_usd=0.0, interactive_usd=0.0)
"""The engine on this machine."""


def price_of(space: Space) -> Price | None:
    """What embedding in a space costs; None when nobody knows (types.models has the table)."""
    if space.provider == "local":
        return FREE
    model = MODELS.get(bare_model_name(space.model))
    if model is None or model.usd_per_million is None or model.batch_usd_per_million is None:
        return None
    return Price(batch_usd=model.batch_usd_per_million, interactive_usd=model.usd_per_million)


def prompt_bytes(space: Space) -> int:
    """UTF-8 bytes that the space's template writes around each text."""
    template = space.prompt_template or ""
    return len(template.replace("{text}", "").encode())


def open_cutter(
    limits: Limits,
    space: Space,
    *,
    max_cost_usd: float | None,
    text_bytes: int,
    first_items: int | None = None,
    rate: TokenRate = DEFAULT_RATE,
) -> Cutter:
    """The cutter of a run's batches, of `text_bytes` in all; the first has at most `first_items`.

    Under a cap they are so small that it can be used up nearly: each is bought only when the cap
    bears the most that it can cost, which is several times what it does.
    """
    price, bound = price_of(space), None
    if max_cost_usd is not None and price is not None and price.batch_usd > 0.0:
        share = max_cost_usd / BATCHES_IN_CAP / price.batch_usd * _MILLION
        bound = max(int(share), text_bytes // MOST_CAPPED_BATCHES)
    return Cutter(
        limits,
        prompt_bytes=prompt_bytes(space),
        max_batch_bound=bound,
        first_items=first_items,
        rate=rate,
    )


def reservations(step: Step, label: str) -> list[Change]:
    """Reserves the job `label` and its audit: `step.move(UPLOAD_STARTED, also=…)`.

    The change raises BudgetExceededError when the run's cap does not bear it.
    """
    context, batch = step.context, step.batch
    if not context.provider.limits.billed:
        return []
    price = price_of(context.space)
    bound = _bound(batch, context)
    purchases = [
        Purchase(
            ref=label,
            run_id=batch.run_id,
            batch_id=batch.id,
            kind="batch",
            rows=batch.items,
            tokens_bound=bound,
            tokens_estimated=batch.tokens_estimated,
            usd_bound=None if price is None else price.of_batch(bound),
            rows_again=batch.bought,
            again_why=batch.bought_why,
        )
    ]
    audited = rows_to_audit(context.config.audit, batch.items, raised=context.run().audit_rows)
    if audited:
        most = batch.item_bound or context.provider.limits.max_item_tokens
        most = min(bound, audited * most)
        purchases.append(
            Purchase(
                ref=audit_ref(label),
                run_id=batch.run_id,
                batch_id=batch.id,
                kind="audit",
                rows=audited,
                tokens_bound=most,
                tokens_estimated=batch.tokens_estimated * audited // batch.items,
                usd_bound=None if price is None else price.of_calls(most),
            )
        )
    return [reservation(*purchases, now=context.now())]


def _bound(batch: BatchRecord, context: RunContext) -> int:
    """A batch that was planned before bounds were kept has that of its bytes."""
    return batch.tokens_bound or batch.text_bytes + batch.items * prompt_bytes(context.space)


def was_billed(error: RowError) -> bool:
    """A row with this error was computed all the same, as far as is known, and is paid for."""
    return error.code in BILLED_WITHOUT_VECTOR


def bought_in_vain(batch: BatchRecord, errors: Mapping[int, RowError]) -> dict[int, str]:
    """Items of a finished job that were billed and gave no vector, each with its error's code.

    Rows that are missing were billed only if the service counts them among those that succeeded;
    where it counts nothing, they were.
    """
    missing = [index for index, error in errors.items() if error.code == MISSING]
    found = {
        index: error.code
        for index, error in errors.items()
        if was_billed(error) and error.code != MISSING
    }
    if batch.succeeded + batch.failed > 0:
        served = batch.items - len(errors) + len(found)
        missing = missing[: max(0, batch.succeeded - served)]
    return found | dict.fromkeys(missing, MISSING)


def spent_on(
    batch: BatchRecord, errors: Mapping[int, RowError], *, tokens: int, uncounted: int
) -> Bought:
    """What a job came to whose results were read.

    `errors` are those of the results by item, `tokens` what the rows with a vector report,
    `uncounted` how many of these report nothing. Those, and rows that were billed and gave no
    vector, count at the batch's average estimate.
    """
    failed = len(bought_in_vain(batch, errors))
    unknown = uncounted + failed
    guessed = -(-batch.tokens_estimated * unknown // batch.items)
    return Bought(
        rows=batch.items - len(errors) + failed,
        tokens=tokens + guessed,
        rows_failed=failed,
        estimated=unknown > 0,
        most=tokens + unknown * batch.item_bound if batch.item_bound else None,
    )


def spent_in_vain(batch: BatchRecord) -> Bought:
    """What a job came to whose results are of no use: the rows that the service counts among
    those that succeeded, all where it counts nothing, at the batch's average estimate."""
    rows = batch.succeeded if batch.succeeded + batch.failed else batch.items
    tokens = -(-batch.tokens_estimated * rows // batch.items)
    most = rows * batch.item_bound if batch.item_bound else None
    return Bought(rows=rows, tokens=tokens, rows_failed=rows, estimated=True, most=most)


def bought_whole(step: Step) -> tuple[int, str] | None:
    """How many rows of a batch that is bought once more its job was billed for, and why it is."""
    batch = step.batch
    line = None if batch.label is None else step.context.journal.ledger.find(batch.label)
    if line is None or line.state != "settled" or not line.rows:
        return None
    quarantined = batch.state is BatchState.QUARANTINED
    return line.rows, "misaligned" if quarantined else str(batch.error_code)


def bounds_of(items: pa.Table, space: Space, max_item_tokens: int) -> tuple[int, int]:
    """The most tokens that staged items can be billed: all together, and the largest of them.

    Items that are not sent have no text, and no bound.
    """
    if "text" not in items.schema.names:
        return 0, 0
    sizes = pc.binary_length(items["text"]).to_numpy().astype(np.int64)
    bounds = item_bounds(sizes, prompt_bytes(space), max_item_tokens)
    return int(bounds.sum()), int(bounds.max(initial=0))


def embed_now(
    context: RunContext,
    texts: Sequence[str],
    *,
    kind: Literal["audit", "probe", "direct"],
    batch: BatchRecord | None = None,
    used: int = 0,
) -> Embedded:
    """Embeds texts at once, at the interactive price, reserved before and settled after.

    Raises BudgetExceededError, with nothing sent, when the cap does not bear it; the audit that
    was reserved with the batch's job is used up by the batch's first audit. Any error of the
    provider passes through, with what may have been billed until then on the books: a call
    whose answer is lost counts at its bound. Of `direct` calls as many rows count as bought again
    as the batch has paid for before, in a job or here, but for the `used` ones, whose answers are
    in hand. More than `CALL_TEXTS` texts are several calls: when a later one fails, the earlier
    ones are paid for and lost.
    """
    limits, space = context.provider.limits, context.space
    if not limits.billed:
        return context.provider.embed(texts)
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], dtype=np.int64)
    bounds = item_bounds(sizes, prompt_bytes(space), limits.max_item_tokens)
    estimates = estimate_tokens(sizes + prompt_bytes(space), limits.max_item_tokens)
    price, most = price_of(space), int(bounds.sum())
    planned = kind == "audit" and batch is not None and batch.label is not None
    purchase = Purchase(
        ref=call_ref(kind, secrets.token_hex(8)),
        run_id=context.run_id,
        batch_id=None if batch is None else batch.id,
        kind=kind,
        rows=len(texts),
        tokens_bound=most,
        tokens_estimated=int(estimates.sum()),
        usd_bound=None if price is None else price.of_calls(most),
        replaces=audit_ref(str(batch.label)) if planned and batch is not None else None,
    )
    if kind == "direct" and batch is not None:
        purchase = replace(purchase, rows_again=batch.bought, again_why=batch.bought_why)
    ledger = context.journal.ledger
    ledger.begin_call(purchase, used=used, now=context.now())
    given: list[Embedded] = []
    try:
        for start in range(0, len(texts), CALL_TEXTS):
            group = texts[start : start + CALL_TEXTS]
            given.append(context.provider.embed(group))
    except BaseException as error:
        done = len(given) * CALL_TEXTS
        lost = slice(done, done + CALL_TEXTS if _may_be_billed(error) else done)
        spent = _counted(given, estimates)
        rows = done + len(bounds[lost])
        if not rows:
            ledger.void(purchase.ref, now=context.now())
        else:
            bought = Bought(
                rows=rows,
                tokens=spent.tokens + int(bounds[lost].sum()),
                rows_failed=rows,
                estimated=True,
            )
            ledger.settle(purchase.ref, bought, now=context.now())
        raise
    ledger.settle(purchase.ref, _counted(given, estimates), now=context.now())
    return given[0] if len(given) == 1 else _joined(given)


def _may_be_billed(error: BaseException) -> bool:
    """A call that ended so may have been computed all the same."""
    if isinstance(error, ProviderUnavailableError):
        return error.sent
    return not isinstance(error, _UNBILLED)


def _counted(given: Sequence[Embedded], estimates: NDArray[np.int64]) -> Bought:
    """What calls came to: as reported, else as estimated."""
    rows = tokens = 0
    estimated = False
    for one in given:
        known, here = one.tokens > 0, slice(rows, rows + len(one.tokens))
        if not one.billed:
            tokens += int(np.where(known, one.tokens, estimates[here]).sum())
            estimated = estimated or not bool(known.all())
        else:
            tokens += one.billed
        rows += len(one.tokens)
    return Bought(rows=rows, tokens=tokens, estimated=estimated)


def _joined(given: Sequence[Embedded]) -> Embedded:
    return Embedded(
        vectors=np.concatenate([one.vectors for one in given]),
        tokens=np.concatenate([one.tokens for one in given]),
        truncated=np.concatenate([one.truncated for one in given]),
    )
