"""What is bought is priced, bounded, reserved before it is made and settled by what came."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replaying import Replay, Replays, bought_twice, failing

from embatch.errors import (
    BudgetExceededError,
    IndeterminateError,
    InvalidRequestError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.journal.purchases import LedgerLine
from embatch.journal.records import BatchRecord
from embatch.providers.base import RemoteStatus
from embatch.runs.accounts import dollars_up, read_accounts, require_priced, set_cap, summary
from embatch.runs.cost import (
    FREE,
    Price,
    bounds_of,
    embed_now,
    open_cutter,
    price_of,
    prompt_bytes,
    spent_in_vain,
    spent_on,
)
from embatch.runs.outcomes import OverBudget
from embatch.runs.plan import item_bounds
from embatch.runs.twins import watch
from embatch.testing.cloud import count_tokens
from embatch.testing.provider import DEFAULT_LIMITS, FakeProvider, Job
from embatch.types.embedding import RowError, Space
from embatch.types.results import BatchProgress, Embedded, ResultBlock

MODEL = "gemini-embedding-001"
PRICE = Price(batch_usd=0.075, interactive_usd=0.15)
TEXTS = [f"text number {row} of ten, all of about the same length" for row in range(10)]


def space(model: str = MODEL, provider: str = "gemini", template: str | None = None) -> Space:
    return Space(provider=provider, model=model, dims=8, prompt_template=template)


def lines(run: Replay) -> list[LedgerLine]:
    return run.journal.ledger.lines(run.context.run_id)


def committed(run: Replay) -> float:
    return sum(run.journal.ledger.committed(run.context.run_id))


@pytest.mark.parametrize(
    ("of", "price"),
    [
        (space(), PRICE),
        (space(provider="vertex"), PRICE),
        (space("gemini-embedding-2"), Price(batch_usd=0.10, interactive_usd=0.20)),
        (space("all-MiniLM-L6-v2", provider="local"), FREE),
        (space("text-embedding-005", provider="vertex"), None),
        (space("a-model-of-tomorrow"), None),
    ],
)
def test_prices_are_the_tables(of: Space, price: Price | None) -> None:
    """Known models have one, this machine is free, and of others nobody knows."""
    assert price_of(of) == price


@given(st.text(min_size=1), st.sampled_from(["", "task: search result | query: {text}"]))
def test_no_text_is_billed_more_than_its_bound(text: str, template: str) -> None:
    """A tokenizer makes no more tokens than there are bytes, prompt included."""
    data = text.encode("utf-8", "surrogatepass")
    around = prompt_bytes(space(template=template or None))
    (bound,) = item_bounds(np.array([len(data)]), around, 2048).tolist()
    sent = template.replace("{text}", text) if template else text
    assert min(count_tokens(sent), 2048) <= bound <= 2048


@given(
    texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=60),
    cap=st.floats(1e-7, 1e-3),
)
def test_under_a_cap_no_batch_may_cost_more_than_an_eighth(texts: list[str], cap: float) -> None:
    """But for a text that alone may, all batches are so small; and nothing is left out."""
    cutter = open_cutter(DEFAULT_LIMITS, space(), max_cost_usd=cap, text_bytes=1)
    table = pa.table({"row": range(len(texts)), "text": texts})
    cuts = [*cutter.add(table), *cutter.rest()]
    assert sum(cut.items.num_rows for cut in cuts) == len(texts)
    for cut in cuts:
        assert cut.items.num_rows == 1 or PRICE.of_batch(cut.tokens_bound) <= cap / 8
        assert cut.tokens_bound == sum(
            min(2048, max(1, len(text.encode()))) for text in cut.items["text"].to_pylist()
        )
        assert bounds_of(cut.items, space(), 2048) == (cut.tokens_bound, cut.item_bound)


def batch_of(items: int, **counts: int) -> BatchRecord:
    values = dict.fromkeys(BatchRecord.__dataclass_fields__, None) | {
        "items": items,
        "tokens_estimated": 10 * items,
        "succeeded": 0,
        "failed": 0,
    }
    return BatchRecord(**{**values, **counts})  # type: ignore[arg-type]


def errors(*codes: str) -> dict[int, RowError]:
    return {index: RowError(code=code, message="m") for index, code in enumerate(codes)}


@pytest.mark.parametrize(
    ("counts", "codes", "uncounted", "rows", "failed", "tokens"),
    [
        ({}, (), 0, 5, 0, 100),
        ({}, (), 5, 5, 0, 150),
        ({}, ("internal", "invalid_argument"), 0, 3, 0, 100),
        ({}, ("not_finite", "zero_vector"), 0, 5, 2, 120),
        ({}, ("missing",), 0, 5, 1, 110),
        ({"succeeded": 4, "failed": 0}, ("missing",), 0, 4, 0, 100),
        ({"succeeded": 5, "failed": 0}, ("missing", "no_vector"), 0, 5, 2, 120),
        ({"succeeded": 4, "failed": 1}, ("missing", "no_vector", "internal"), 0, 4, 2, 120),
    ],
)
def test_a_read_job_costs_what_it_served(
    counts: dict[str, int],
    codes: tuple[str, ...],
    uncounted: int,
    rows: int,
    failed: int,
    tokens: int,
) -> None:
    """Counted rows at their count, others at the average estimate; rows that the service itself
    calls failed, or does not count as served, at nothing."""
    bought = spent_on(batch_of(5, **counts), errors(*codes), tokens=100, uncounted=uncounted)
    assert (bought.rows, bought.rows_failed, bought.tokens) == (rows, failed, tokens)
    assert bought.estimated == (tokens != 100)


def test_rows_that_were_not_counted_cost_what_the_largest_may_at_most() -> None:
    """The cap keeps that; for the rows that the service counted it keeps nothing more."""
    batch = batch_of(5, item_bound=40, succeeded=5)
    assert spent_on(batch, errors("no_vector"), tokens=100, uncounted=1).most == 180
    assert spent_in_vain(batch_of(5, item_bound=40, succeeded=3, failed=2)).most == 120
    older = replace(batch, item_bound=0)  # its purchase's bound stands
    assert spent_on(older, {}, tokens=100, uncounted=1).most is None


def test_a_run_without_a_cap_keeps_its_books(replay: Replays) -> None:
    """Every batch and audit has its line, settled or void; nothing is open at the end."""
    run = replay(FakeProvider(model=MODEL), TEXTS)
    run.work()
    sums = run.journal.ledger.sums(run.context.run_id)
    assert (sums["batch"].rows, sums["batch"].usd_open, sums["audit"].usd_open) == (10, 0.0, 0.0)
    assert sums["batch"].usd == pytest.approx(PRICE.of_batch(sums["batch"].tokens))
    assert sums["audit"].usd == pytest.approx(PRICE.of_calls(sums["audit"].tokens))
    assert {line.state for line in lines(run)} <= {"settled", "void"}


def test_a_run_stops_at_its_cap_and_goes_on_under_a_higher_one(replay: Replays) -> None:
    """The last outcome says what is spent; with more money the rest is bought."""
    whole = replay(FakeProvider(model=MODEL), TEXTS, audit="off")
    whole.work()
    cost = committed(whole)
    run = replay(FakeProvider(model=MODEL), TEXTS, audit="off", max_cost_usd=4 * cost)
    set_cap(run.journal, run.context.run_id, 0.6 * cost, now=run.clock())
    stopped = step_until_over_budget(run)
    assert "the cap is $" in stopped.error
    assert 0.0 < committed(run) <= 0.6 * cost
    assert 0 < len(run.written()) < len(TEXTS)
    set_cap(run.journal, run.context.run_id, 8 * cost, now=run.clock())
    run.work()
    run.assert_right()
    assert committed(run) == pytest.approx(cost)


def step_until_over_budget(run: Replay, *, idle_s: float = 1.0) -> OverBudget:
    for _ in range(500):
        outcome = run.step()
        if isinstance(outcome, OverBudget):
            return outcome
        if outcome is None:
            run.clock.advance(idle_s)
        assert committed(run) <= run.context.run().config["max_cost_usd"] + 1e-12
    raise AssertionError("the run did not come to its cap")


def test_a_late_twin_brings_no_run_over_its_cap(replay: Replays) -> None:
    """A job that was held absent had run, and is seen only when the cap is used up: there was room
    kept for it. With more money the rest is bought."""
    whole = replay(FakeProvider(model=MODEL), TEXTS, audit="off")
    whole.work()
    cost = committed(whole)
    lost = IndeterminateError("the answer was lost", label="x")
    provider = FakeProvider(model=MODEL, after_submit=failing(1, lost))
    provider.on_job = lambda job: setattr(job, "hidden", not provider.submitted)
    run = replay(provider, TEXTS, audit="off", max_cost_usd=0.9 * cost)
    stopped = step_until_over_budget(run, idle_s=60.0)
    assert "may come of what is not settled" in stopped.error
    assert "absent" in {job.state for job in run.journal.jobs.of_run(run.context.run_id)}
    provider.jobs["jobs/0"].hidden = False
    before = committed(run)
    watch(run.context)
    assert "absent" not in {job.state for job in run.journal.jobs.of_run(run.context.run_id)}
    assert committed(run) <= before <= 0.9 * cost + 1e-12
    assert cost * len(provider.rows_bought) / len(TEXTS) <= 0.9 * cost
    set_cap(run.journal, run.context.run_id, 8 * cost, now=run.clock())
    run.work()
    run.assert_right()


def test_children_have_bounds_of_their_own(replay: Replays) -> None:
    """A batch that is refused for a row falls into halves whose bounds are those of their texts."""

    def refuse(job: Job) -> None:
        if any("number 3 " in text for text in job.texts) and len(job.texts) > 1:
            raise InvalidRequestError("a row is bad")

    run = replay(FakeProvider(model=MODEL, on_job=refuse), TEXTS)
    run.work()
    batches = {batch.id: batch for batch in run.journal.batches.walk(run.context.run_id)}
    parents = {batch.parent_id for batch in batches.values()} - {None}
    assert parents
    for parent in parents:
        children = [batch for batch in batches.values() if batch.parent_id == parent]
        assert sum(child.tokens_bound for child in children) == batches[parent].tokens_bound
        assert max(child.item_bound for child in children) == batches[parent].item_bound
    states = {line.state for line in lines(run) if line.batch_id in parents}
    assert states == {"void"}


def test_rows_that_never_came_are_bought_again_and_counted(replay: Replays) -> None:
    """The child's line says how many rows were billed before, and why."""

    def lose(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if len(job.texts) < 3:
            return blocks
        return [replace(block, keys=block.keys[2:], vectors=block.vectors[2:]) for block in blocks]

    run = replay(FakeProvider(model=MODEL, on_results=lose), TEXTS[:6])
    run.work()
    run.assert_right()
    record = run.context.run()
    accounts = read_accounts(run.journal, record, run.journal.batches.counts(record.id))
    assert (accounts.rows_again, accounts.again_why) == (2, {"missing": 2})
    assert accounts.rows_failed == 2
    assert accounts.bought.rows == len(run.provider.rows_bought) == 8
    assert "2 rows bought twice (2 missing)" in " ".join(summary(accounts))


def test_no_row_that_was_bought_before_is_forgotten_when_its_batch_is_split(
    replay: Replays,
) -> None:
    """Three of eight rows were billed and lost; the next job of all eight is refused."""

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if len(run.provider.submitted) > 1:
            return blocks
        (block,) = blocks
        busy = RowError(code="unavailable", message="busy", transient=True)
        errors = [(key, busy) for key in block.keys[3:]]
        return [ResultBlock(keys=[], vectors=block.vectors[:0], errors=errors)]

    def refuse(job: Job) -> None:
        if run.provider.submitted and len(job.texts) == 8:
            raise InvalidRequestError("too much at once")

    run = replay(FakeProvider(model=MODEL, on_results=spoil, on_job=refuse), TEXTS[:8], audit="off")
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 3
    assert bought_twice(run)["missing"] >= 3


def test_rows_that_were_refused_are_not_bought_again_with_their_batch(replay: Replays) -> None:
    """A quarantined batch of six, one row of it refused for good: five were billed before."""

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        order = [0, 2, 3, 4, 5]
        swapped = [2, 0, 3, 4, 5] if len(run.provider.submitted) == 1 else order
        refused = RowError(code="invalid_argument", message="refused")
        keys = [block.keys[place] for place in order]
        return [
            ResultBlock(
                keys=keys, vectors=block.vectors[swapped], errors=[(block.keys[1], refused)]
            )
        ]

    run = replay(FakeProvider(model=MODEL, on_results=spoil), TEXTS[:6], audit="all")
    run.work()
    run.assert_right(failed={1})
    record = run.context.run()
    accounts = read_accounts(run.journal, record, run.journal.batches.counts(record.id))
    assert (accounts.rows_again, accounts.again_why) == (5, {"misaligned": 5})


def test_a_half_served_job_that_is_misaligned_was_billed_for_its_half(replay: Replays) -> None:
    """Its results cannot be read, and the service has counted three of its six rows."""

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if len(run.provider.submitted) > 1:
            return blocks
        (block,) = blocks
        keys = [block.keys[0], block.keys[0], block.keys[1]]
        return [ResultBlock(keys=keys, vectors=block.vectors[:3])]

    class Halving(FakeProvider):
        def poll(self, name: str) -> RemoteStatus:
            seen = super().poll(name)
            counts = BatchProgress(total=6, succeeded=3, failed=0)
            return replace(seen, progress=counts) if len(self.submitted) == 1 else seen

    run = replay(Halving(model=MODEL, on_results=spoil), TEXTS[:6])
    run.work()
    run.assert_right()
    record = run.context.run()
    accounts = read_accounts(run.journal, record, run.journal.batches.counts(record.id))
    assert (accounts.rows_again, accounts.again_why) == (3, {"misaligned": 3})
    assert accounts.bought.rows == 9


@pytest.fixture
def run(replay: Replays) -> Replay:
    """A run under a cap with one batch, nothing of it begun."""
    return replay(FakeProvider(model=MODEL), TEXTS[:4], max_cost_usd=1.0)


def only_line(run: Replay) -> LedgerLine:
    (line,) = lines(run)
    return line


def test_a_call_is_reserved_before_and_settled_after(run: Replay) -> None:
    """At the interactive price; by the estimate where the service tells no counts."""
    bound = sum(len(text) for text in TEXTS)

    def look(texts: list[str]) -> None:
        line = only_line(run)
        assert (line.state, line.tokens_bound, line.kind) == ("reserved", bound, "audit")
        assert line.usd_bound == pytest.approx(PRICE.of_calls(bound))
        assert len(texts) == len(TEXTS)

    run.provider.before_embed = look
    found = embed_now(run.context, TEXTS, kind="audit")
    assert found.vectors.shape == (10, 8)
    line = only_line(run)
    assert (line.state, line.rows, line.tokens) == ("settled", 10, int(found.tokens.sum()))


def test_the_sum_that_a_service_tells_of_a_call_is_what_it_costs(run: Replay) -> None:
    """Though it says nothing of each text."""

    class Summing(FakeProvider):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
            found = FakeProvider.embed(self, texts, query=query)
            return replace(found, tokens=np.full(len(texts), -1, dtype=np.int32), billed=77)

    context = replace(run.context, provider=Summing(model=MODEL))
    embed_now(context, TEXTS, kind="audit")
    line = only_line(run)
    assert (line.tokens, line.estimated) == (77, False)


def test_a_call_that_was_surely_not_made_costs_nothing(run: Replay) -> None:
    """A quota refused it: its line is void."""

    def refuse(_: list[str]) -> None:
        raise RateLimitError("full")

    run.provider.before_embed = refuse
    with pytest.raises(RateLimitError):
        embed_now(run.context, TEXTS, kind="audit")
    assert (only_line(run).state, committed(run)) == ("void", 0.0)


def test_a_call_whose_answer_is_lost_counts_at_its_bound(run: Replay) -> None:
    """It may have been billed; what came before it is counted as it came."""
    left = iter([None, ProviderUnavailableError("the connection was lost")])

    def lose(_: list[str]) -> None:
        if (error := next(left)) is not None:
            raise error

    run.provider.before_embed = lose
    texts = ["x" * 40] * 150
    with pytest.raises(ProviderUnavailableError):
        embed_now(run.context, texts, kind="direct")
    line = only_line(run)
    known = len(texts[:100]) * 40 // 4 if line.tokens is None else line.tokens - 50 * 40
    assert (line.state, line.rows, line.estimated) == ("settled", 150, True)
    assert 0 < known < 100 * 40


def test_a_call_that_never_left_this_machine_costs_nothing(run: Replay) -> None:
    """Each is void, and what was answered before one is still counted as it came."""
    refused = ProviderUnavailableError("the connection was refused")
    refused.sent = False
    left = iter([refused, None, refused])

    def refuse(_: list[str]) -> None:
        if (error := next(left)) is not None:
            raise error

    run.provider.before_embed = refuse
    for _ in range(2):
        with pytest.raises(ProviderUnavailableError):
            embed_now(run.context, ["x" * 40] * 150, kind="audit")
    void, part = sorted(lines(run), key=lambda line: line.state, reverse=True)
    assert (void.state, part.state, part.rows, part.rows_failed) == ("void", "settled", 100, 100)


def test_a_call_that_does_not_fit_is_not_made(run: Replay) -> None:
    """Nothing is sent, and no line is left."""

    def never(_: list[str]) -> None:
        raise AssertionError("it was sent")

    run.provider.before_embed = never
    set_cap(run.journal, run.context.run_id, 1e-9, now=run.clock())
    with pytest.raises(BudgetExceededError):
        embed_now(run.context, TEXTS, kind="direct")
    assert lines(run) == []


def test_where_nothing_is_billed_nothing_is_written(replay: Replays) -> None:
    """No reservation, no line, no cost."""
    run = replay(FakeProvider().limited(billed=False), TEXTS)
    run.work()
    embed_now(run.context, TEXTS, kind="audit")
    assert lines(run) == []


def test_a_cap_needs_a_price(replay: Replays) -> None:
    """A new cap for a run whose model has none is refused, as a new run with one is."""
    run = replay(FakeProvider(), TEXTS)
    with pytest.raises(InvalidRequestError, match="--max-cost 3: the price of fake"):
        set_cap(run.journal, run.context.run_id, 3.0, now=run.clock())
    require_priced(space("fake"), None)
    run.work()
    record = run.context.run()
    accounts = read_accounts(run.journal, record, run.journal.batches.counts(record.id))
    assert (accounts.spent_usd, accounts.saved, accounts.bought.rows) == (None, None, 10)
    assert "the price is not known" in summary(accounts)[0]


def test_what_is_saved_is_told_apart(replay: Replays) -> None:
    """Half by the batch price, and what equal texts would have cost besides."""
    texts = [*TEXTS, *TEXTS[:5]]
    run = replay(FakeProvider(model=MODEL), texts, audit="off")
    run.work()
    record = run.context.run()
    accounts = read_accounts(run.journal, record, run.journal.batches.counts(record.id))
    assert accounts.saved is not None
    assert accounts.spent_usd == pytest.approx(accounts.saved.batch_price)
    assert accounts.saved.dedupe == pytest.approx((accounts.spent_usd or 0.0) / 2)
    assert accounts.saved.reuse == 0.0
    assert accounts.to_json()["saved"]["usd"] == accounts.saved.usd


@pytest.mark.parametrize(
    ("usd", "words"),
    [(0.0, "0.00"), (12.341, "12.35"), (0.123401, "0.124"), (0.00012345, "0.000124")],
)
def test_proposed_caps_are_rounded_up(usd: float, words: str) -> None:
    """What is typed is no less than what was meant."""
    assert dollars_up(usd) == words
