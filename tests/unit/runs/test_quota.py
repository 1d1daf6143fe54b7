"""What is believed of a quota, from what was accepted and what was refused."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.journal.quotas import Occupancy
from embatch.runs import quota
from embatch.runs.quota import Belief, Ceiling, Go, Refusal, Wait

NOW = 1_795_000_000.0  # 2026-11-18, 11:06:40 UTC
BATCH = 60_000
KNOWN = Belief(
    tokens=Ceiling(most=1_000_000, proven=1_000_000),
    jobs=Ceiling(proven=17),
    growing=False,
    settled=1_000_000,
    refused_total=1_040_000,
)
"""A ceiling that was met at a million tokens."""


def flying(tokens: int, *, jobs: int | None = None, **facts: object) -> Occupancy:
    """So much in flight, in batches of the usual size."""
    count = max(1, tokens // BATCH) if jobs is None else jobs
    return Occupancy(tokens=tokens, jobs=count, live_jobs=count, **facts)  # type: ignore[arg-type]


def refuse(belief: Belief, tokens: int, *, now: float = NOW, **facts: object) -> Belief:
    """A create of the usual size that would have brought what is in flight to `tokens`."""
    refusal = Refusal(label="x", tokens=BATCH, asked_at=now - 1, **facts)  # type: ignore[arg-type]
    load = flying(tokens - BATCH) if tokens > BATCH else Occupancy()
    return quota.refused(belief, load, refusal, now=now)


def accept(belief: Belief, tokens: int, *, now: float = NOW, **facts: object) -> Belief:
    """A create that brought what is in flight to `tokens`."""
    return quota.accepted(belief, flying(tokens, **facts), label="x", now=now)[0]


def ask(belief: Belief, tokens: int, *, now: float = NOW, **facts: object) -> Go | Wait:
    """May a create bring what is in flight to `tokens`?"""
    return quota.admit(belief, flying(tokens, **facts), label="x", now=now)


def test_what_is_in_flight_grows_until_a_create_is_refused() -> None:
    """The ceiling is what was in flight then; it is put to the test once more, and then stands."""
    belief = Belief()
    for tokens in range(BATCH, 1_000_000, BATCH):
        assert isinstance(ask(belief, tokens), Go)
        belief = accept(belief, tokens)
    assert belief.tokens.most is None
    belief = refuse(belief, 1_020_000)
    assert belief.tokens.most == 960_000
    assert ask(belief, 1_020_000) == Wait(seconds=quota.CONFIRM_S, why="room")
    again = NOW + quota.CONFIRM_S
    assert isinstance(ask(belief, 1_020_000, now=again), Go)
    belief = refuse(belief, 1_020_000, now=again)
    assert ask(belief, 1_020_000, now=again + 60).seconds == quota.ROOM_LOOK_S
    assert isinstance(ask(belief, 960_000, now=again + 60), Go)


def test_tries_past_the_ceiling_are_earned() -> None:
    """In the long run, fewer than one create in fifteen is refused for it."""
    belief, now = KNOWN, NOW
    refused = 0
    for _ in range(2000):
        now += 300.0
        if isinstance(ask(belief, 1_060_000, now=now), Go):
            belief = refuse(belief, 1_060_000, now=now)
            refused += 1
        belief = accept(belief, 990_000, now=now + 1)
    assert 100 < refused < (2000 + refused) / 15


def test_a_try_that_is_accepted_raises_the_ceiling_and_the_next_may_follow() -> None:
    """A ceiling that has risen is found within as many creates as fit under it."""
    belief = replace(KNOWN, credit=1.0)
    tokens = 1_000_000
    while tokens < 2_000_000:
        tokens += BATCH
        assert isinstance(ask(belief, tokens), Go)
        belief = accept(belief, tokens)
    assert belief.tokens.most == tokens


def test_a_spurious_refusal_changes_no_ceiling() -> None:
    """Far below what was accepted: it is asked again a little later, and all is as before."""
    belief = refuse(KNOWN, 500_000)
    assert belief.tokens == KNOWN.tokens
    assert ask(belief, 500_000) == Wait(seconds=quota.HOLD_FIRST_S, why="refused")
    belief = accept(belief, 500_000, now=NOW + 3)
    assert (belief.tokens, belief.doubted, belief.streak) == (KNOWN.tokens, False, 0)
    assert isinstance(ask(belief, 1_000_000, now=NOW + 4), Go)


def test_refusals_in_a_row_lower_the_ceiling_further_each_time() -> None:
    """A ceiling that fell from a million to 300,000 is found in a handful of creates."""
    belief, now, refusals = KNOWN, NOW, 0
    while (most := belief.tokens.most or 0) > 300_000:
        now += 1000.0
        belief = refuse(belief, most, now=now)
        refusals += 1
    assert refusals <= 6
    assert most > 150_000
    belief = accept(belief, most, now=now + 1000)
    assert isinstance(ask(belief, most + BATCH, now=now + 1001), Go)


def test_a_refusal_at_the_ceiling_costs_little_of_it() -> None:
    """It had been counted a little too high: nothing is held up, and little is lost."""
    belief = refuse(KNOWN, 990_000)
    assert belief.tokens.most == 940_500
    assert belief.hold_until - NOW <= quota.HOLD_FIRST_S


def test_refusals_of_one_moment_count_once() -> None:
    """What was sent before the first answer was known says nothing new."""
    first = refuse(KNOWN, 990_000)
    second = quota.refused(
        first,
        flying(930_000),
        Refusal(label="y", tokens=BATCH, asked_at=NOW - 1),
        now=NOW + 1,
    )
    assert replace(second, refused=1, refused_at=NOW) == first


def test_a_wait_that_the_service_names_is_only_a_wait() -> None:
    """A quota of the minute says nothing of what may be in flight."""
    belief = refuse(KNOWN, 990_000, retry_after_s=33.4)
    assert ask(belief, 60_000) == Wait(seconds=pytest.approx(33.4), why="minute")
    assert (belief.tokens, belief.credit) == (KNOWN.tokens, KNOWN.credit)
    assert isinstance(ask(belief, 60_000, now=NOW + 34), Go)


def test_the_quota_of_a_day_holds_until_the_day_turns() -> None:
    """Seconds named beside it are a slip of the service; a wait of hours is believed."""
    belief = refuse(KNOWN, 990_000, retry_after_s=43.0, per_day=True)
    assert (belief.hold, belief.hold_until) == ("day", 1_795_075_200.0)  # 08:00 UTC
    assert belief.tokens == KNOWN.tokens
    assert quota.day_turns(1_795_075_199.0, None) == 1_795_075_200.0
    assert quota.day_turns(1_795_075_200.0, None) == 1_795_161_600.0
    long = refuse(KNOWN, 990_000, retry_after_s=68_408.0, per_day=True)
    assert long.hold_until == NOW + 68_408.0
    assert isinstance(ask(quota.released(belief), 60_000), Go)


def test_a_batch_with_nothing_else_in_flight_is_always_tried() -> None:
    """Whatever is believed; refused again and again for minutes, it is too large."""
    belief, now = replace(KNOWN, tokens=Ceiling(most=20_000, proven=20_000)), NOW
    tries = 0
    while belief.too_large is None:
        verdict = ask(belief, BATCH, now=now, jobs=1)
        if isinstance(verdict, Wait):
            now += verdict.seconds
            continue
        tries += 1
        belief = refuse(belief, BATCH, now=now)
    assert 4 <= tries <= 8
    assert now - NOW >= quota.ALONE_S
    assert belief.too_large == BATCH
    assert accept(belief, 2 * BATCH).too_large is None


def test_cancelled_jobs_count_until_they_are_proven_not_to() -> None:
    """A total that was refused once is accepted: they hold no share any more."""
    belief = replace(KNOWN, credit=1.0)
    cancelled = {"cancelled_tokens": 600_000, "cancelled_jobs": 10}
    assert ask(replace(belief, credit=0.0), 1_050_000, **cancelled).why == "room"
    assert isinstance(ask(belief, 1_050_000, **cancelled), Go)
    after, free = quota.accepted(belief, flying(1_050_000, **cancelled), label="x", now=NOW)
    assert free
    assert after.tokens.most == 1_000_000
    _, free = quota.accepted(belief, flying(900_000, **cancelled), label="x", now=NOW)
    assert not free


def test_a_ceiling_of_jobs_is_told_from_one_of_tokens() -> None:
    """Refused with few tokens in flight and more jobs than ever before: it is the jobs."""
    belief = Belief()
    for jobs in range(1, 101):
        belief = accept(belief, jobs * 1000 + 50_000, jobs=jobs)
    refusal = Refusal(label="x", tokens=1000, asked_at=NOW)
    belief = quota.refused(belief, flying(100_000, jobs=100), refusal, now=NOW)
    assert belief.jobs.most == 100
    assert belief.tokens.most is None
    assert ask(belief, 101_000, jobs=101).why == "room"
    assert isinstance(ask(belief, 400_000, jobs=100), Go)


def test_others_wait_for_the_answer_to_a_try() -> None:
    """One create at a time goes past what is known; one whose process died holds nobody long."""
    verdict = quota.admit(Belief(), flying(BATCH), label="a", now=NOW)
    assert isinstance(verdict, Go)
    both = flying(2 * BATCH, creating=frozenset({"a", "b"}))
    assert quota.admit(verdict.belief, both, label="b", now=NOW).why == "trial"
    later = NOW + quota.TRIAL_S
    assert isinstance(quota.admit(verdict.belief, both, label="b", now=later), Go)
    found = flying(2 * BATCH, creating=frozenset({"b"}))
    assert isinstance(quota.admit(verdict.belief, found, label="b", now=NOW), Go)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 4000))))
def test_whatever_happens_a_belief_stays_sound(events: list[tuple[int, int, int]]) -> None:
    """It survives the journal word for word, nothing falls below 0, and a lone batch may go."""
    belief, now = Belief(), NOW
    for kind, size, seconds in events:
        now += seconds
        tokens = size * BATCH
        if kind == 0:
            belief = refuse(belief, tokens, now=now)
        elif kind == 1:
            belief = refuse(belief, tokens, now=now, retry_after_s=10.0)
        else:
            belief = accept(belief, tokens, now=now)
        assert Belief.from_json(json.loads(json.dumps(belief.to_json()))) == belief
        assert (belief.tokens.most or 0) >= 0
        assert quota.LEAST_CREDIT <= belief.credit <= quota.MOST_CREDIT
        assert isinstance(ask(belief, BATCH, now=now + quota.HOLD_MOST_S, jobs=1), Go)
