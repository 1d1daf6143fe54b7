"""The learned quota: how much may be in flight, from what was accepted and what was refused.

Services do not say where their ceilings are, and move them. What is in flight is counted in our
own estimates, and grows until a create is refused; that is the ceiling then. Past it, one more is
tried only now and again: each accepted create earns a part of such a try, so that few creates are
refused whatever the ceiling does. A try that is accepted raises the ceiling, and the next may
follow at once. A refusal below what was accepted lately lowers it, the more the more often in a
row; far below it, it is first asked again whether it was meant.

Pure: the time and what is in flight come in, the new belief goes out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from embatch.journal.quotas import Occupancy

NEAR: Final = 0.9
"""A refusal at this share of the most that was accepted, or more, is about the ceiling."""
CUTS: Final = (0.95, 0.85, 0.7, 0.5)
"""What is left of a refused total as the ceiling, by the count of refusals in a row."""
FIRST_PRICE: Final = 4.0
"""Accepted creates that earn the first try past a new ceiling; doubles with each one refused."""
MOST_PRICE: Final = 16.0
"""It never costs more: a service that has raised its ceiling shall be found out."""
MOST_CREDIT: Final = 1.5
"""Tries that can be saved up."""
LEAST_CREDIT: Final = -1.0
RAISED: Final = 1.25
"""A ceiling that has risen so far is a new one: tries past it cost little again."""
APART_S: Final = 120.0
"""Seconds between two tries past the ceiling that were refused."""
FALLEN: Final = 0.5
"""A ceiling below this share of what was accepted before may be given back any time, …"""
FALLEN_S: Final = 2400.0
"""… and is tried so many seconds after the last refusal, earned or not."""
FALLEN_FACTOR: Final = 1.25
"""The next of these tries comes so much later."""
CONFIRM_S: Final = 30.0
"""Seconds after which a refusal that ended a growth is put to the test, once."""
HOLD_FIRST_S: Final = 2.0
"""Seconds without any create after a refusal that nothing in flight explains."""
HOLD_FACTOR: Final = 3.0
HOLD_MOST_S: Final = 600.0
TRIAL_S: Final = 30.0
"""For so long the others wait for the answer to a try."""
TRIAL_LOOK_S: Final = 0.5
"""Seconds until they look for it."""
ROOM_LOOK_S: Final = 30.0
"""Seconds until a batch without room looks again; the end of a job wakes it before."""
ALONE_TRIES: Final = 4
"""Refusals in a row with nothing else in flight, after which a batch counts as too large …"""
ALONE_S: Final = 300.0
"""… when they have gone on for so many seconds."""
DAY_S: Final = 86_400.0
DAY_TURNS_S: Final = 8 * 3600.0
"""Quotas of a day turn at midnight in California (ai.google.dev/gemini-api/docs/rate-limits, read
2026-11): 08:00 UTC in winter, an hour earlier in summer. This is never too early."""
TRUSTED_DAY_WAIT_S: Final = 3600.0
"""A wait that a service names with a quota of the day is believed from here on."""

Hold = Literal["minute", "day", "refused"]
"""Why nothing is created for a while: the service named the wait, the day's quota is used up, or
a refusal that nothing explains."""
Why = Literal["minute", "day", "refused", "trial", "room"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Of tokens, or of jobs."""

    most: int | None = None
    """As much may be in flight; None: never met."""
    proven: int = 0
    """The most that was accepted since the ceiling last fell."""

    def passed(self, total: int) -> bool:
        """So much goes past it; past a ceiling that was never met goes nothing."""
        return self.most is not None and total > self.most

    def accepted(self, total: int) -> "Ceiling":
        """So much was accepted."""
        most = None if self.most is None else max(self.most, total)
        return replace(self, most=most, proven=max(self.proven, total))

    def lowered(self, most: int) -> "Ceiling":
        """No more than `most` from now on."""
        return replace(self, most=most, proven=min(self.proven, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """All that is believed of one quota. Times are seconds since 1970."""

    tokens: Ceiling = field(default_factory=Ceiling)
    jobs: Ceiling = field(default_factory=Ceiling)
    growing: bool = True
    """The last try past the ceiling was accepted: the next may follow."""
    confirm_at: float | None = None
    """When the refusal that ended a growth is put to the test."""
    credit: float = 0.0
    """Tries past the ceiling that are earned."""
    price: float = FIRST_PRICE
    """Accepted creates that earn one."""
    settled: int = 0
    """Tokens of the ceiling when a try past it was last refused."""
    peak: int = 0
    """The most tokens that were ever accepted."""
    overdue_s: float = FALLEN_S
    """Seconds after a refusal until a ceiling that has fallen is tried, earned or not."""
    try_at: float = 0.0
    """No earned try before."""
    strikes: int = 0
    """Refusals in a row below the ceiling."""
    doubted: bool = False
    """A refusal far below what was accepted waits to be asked again."""
    streak: int = 0
    """Refusals in a row without a reason given."""
    alone_since: float | None = None
    """Since when batches are refused with nothing else in flight."""
    too_large: int | None = None
    """Batches of so many tokens are not taken even alone."""
    refused_total: int | None = None
    """Least total that was refused for its size since that much was last accepted."""
    trial: str | None = None
    """Label of the job that is being tried."""
    trial_until: float = 0.0
    hold: Hold | None = None
    hold_until: float = 0.0
    """Nothing is created before."""
    accepted: int = 0
    refused: int = 0
    accepted_at: float | None = None
    refused_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Belief":
        """The belief that `to_json` wrote; the first one of all for an empty mapping."""
        if not values:
            return cls()
        ceilings = {name: Ceiling(**values[name]) for name in ("tokens", "jobs")}
        return cls(**{**values, **ceilings})


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """The create may be sent."""

    belief: Belief


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not now."""

    seconds: float
    why: Why


def admit(belief: Belief, load: Occupancy, *, label: str, now: float) -> Go | Wait:
    """May the job `label`, which `load` counts already, be created?"""
    if belief.hold_until > now:
        return Wait(seconds=belief.hold_until - now, why=belief.hold or "refused")
    past = belief.tokens.passed(load.tokens) or belief.jobs.passed(load.jobs)
    met = belief.tokens.most is not None or belief.jobs.most is not None
    if met and not past and not belief.streak:
        return Go(belief=belief)
    others = load.creating - {label}
    if belief.trial in others and belief.trial_until > now:
        return Wait(seconds=TRIAL_LOOK_S, why="trial")
    if past and load.live_jobs > 1 and not _may_try(belief, now):
        wait_s = ROOM_LOOK_S
        if belief.confirm_at is not None:
            wait_s = min(wait_s, max(TRIAL_LOOK_S, belief.confirm_at - now))
        return Wait(seconds=wait_s, why="room")
    return Go(belief=replace(belief, trial=label, trial_until=now + TRIAL_S))


def _may_try(belief: Belief, now: float) -> bool:
    """A try past the ceiling is due."""
    confirming = belief.confirm_at is not None and now >= belief.confirm_at
    earned = belief.credit >= 1.0 and now >= belief.try_at
    overdue = _has_fallen(belief) and now >= (belief.refused_at or 0.0) + belief.overdue_s
    return belief.growing or confirming or earned or overdue


def _has_fallen(belief: Belief) -> bool:
    return belief.tokens.most is not None and belief.tokens.most < FALLEN * belief.peak


def accepted(belief: Belief, load: Occupancy, *, label: str, now: float) -> tuple[Belief, bool]:
    """The job `label` was created; `load` counts it as one that exists.

    Gives the new belief, and whether the cancelled jobs are proven not to count any more.
    """
    tokens = load.tokens - load.creating_tokens
    jobs = load.jobs - len(load.creating)
    refused_once = belief.refused_total is not None and tokens >= belief.refused_total
    free = refused_once and load.cancelled_jobs > 0
    if free:
        tokens -= load.cancelled_tokens
        jobs -= load.cancelled_jobs
    raised = belief.tokens.passed(tokens) or belief.jobs.passed(jobs)
    renewed = tokens >= RAISED * belief.settled
    too_large = belief.too_large
    belief = replace(
        belief,
        tokens=belief.tokens.accepted(tokens),
        jobs=belief.jobs.accepted(jobs),
        growing=belief.growing or raised or belief.strikes > 1,
        confirm_at=None if raised else belief.confirm_at,
        credit=min(MOST_CREDIT, belief.credit + 1.0 / belief.price),
        price=FIRST_PRICE if renewed else belief.price,
        peak=max(belief.peak, tokens),
        strikes=0,
        doubted=False,
        streak=0,
        alone_since=None,
        too_large=None if too_large is not None and tokens >= too_large else too_large,
        refused_total=None if refused_once and not free else belief.refused_total,
        accepted=belief.accepted + 1,
        accepted_at=now,
    )
    return _answered(belief, label), free


def _answered(belief: Belief, label: str) -> Belief:
    return replace(belief, trial=None) if belief.trial == label else belief


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A create that was answered by 429."""

    label: str
    tokens: int
    """Estimated, of the batch."""
    asked_at: float
    """When it was about to be sent."""
    retry_after_s: float | None = None
    """The wait that the service named."""
    per_day: bool = False


def refused(belief: Belief, load: Occupancy, refusal: Refusal, *, now: float) -> Belief:
    """The create was refused; `load` counts it no more."""
    earlier = belief.refused_at
    belief = _answered(replace(belief, refused=belief.refused + 1, refused_at=now), refusal.label)
    if refusal.per_day:
        return _held(belief, "day", day_turns(now, refusal.retry_after_s))
    if refusal.retry_after_s is not None:
        return _held(belief, "minute", now + refusal.retry_after_s)
    if earlier is not None and refusal.asked_at < earlier:
        return belief  # sent before the last refusal was known: it says the same again
    belief = replace(belief, streak=belief.streak + 1)
    tokens, jobs = load.tokens + refusal.tokens, load.jobs + 1
    if load.live_jobs == 0:
        return _refused_alone(belief, refusal, load, now)
    belief = _charged(belief)
    past = belief.tokens.passed(tokens)
    if belief.jobs.passed(jobs) and not past:
        return replace(_tried_in_vain(belief, now), streak=0)
    if past or (belief.tokens.most is None and tokens > belief.tokens.proven):
        return _try_refused(belief, tokens, load.tokens, now)
    if belief.jobs.most is None and jobs > belief.jobs.proven and not _near(belief, tokens):
        met = belief.jobs.lowered(load.jobs)
        return replace(_tried_in_vain(belief, now), jobs=met, streak=0)
    if _near(belief, tokens) or belief.doubted:
        return _struck(belief, tokens, now)
    return _held(replace(belief, doubted=True, growing=False), "refused", now + _hold_s(belief))


def _charged(belief: Belief) -> Belief:
    """What the refusal costs: a try that is earned, or the wait for the next that is not."""
    if _has_fallen(belief) and belief.credit < 1.0 and not belief.growing:
        return replace(belief, overdue_s=belief.overdue_s * FALLEN_FACTOR)
    return replace(belief, credit=max(LEAST_CREDIT, belief.credit - 1.0))


def _near(belief: Belief, tokens: int) -> bool:
    return tokens > NEAR * belief.tokens.proven


def _try_refused(belief: Belief, tokens: int, without: int, now: float) -> Belief:
    """A try past the ceiling: it stands where it stood, or at what is in flight without it."""
    most = belief.tokens.most
    stands = belief.tokens if most is not None else belief.tokens.lowered(without)
    least = tokens if belief.refused_total is None else min(tokens, belief.refused_total)
    return replace(_tried_in_vain(belief, now), tokens=stands, refused_total=least, streak=0)


def _tried_in_vain(belief: Belief, now: float) -> Belief:
    most = belief.tokens.most or belief.tokens.proven
    surprising = belief.growing and most > RAISED * belief.settled
    return replace(
        belief,
        growing=False,
        confirm_at=now + CONFIRM_S if surprising else None,
        price=belief.price if surprising else min(MOST_PRICE, belief.price * 2.0),
        settled=most,
        try_at=now + APART_S,
    )


def _struck(belief: Belief, tokens: int, now: float) -> Belief:
    """The ceiling has fallen: below the total that was refused, further each time in a row."""
    strikes = belief.strikes + 1
    cut = CUTS[min(strikes, len(CUTS)) - 1]
    return _held(
        replace(
            belief,
            tokens=belief.tokens.lowered(int(tokens * cut)),
            growing=False,
            confirm_at=None,
            strikes=strikes,
            price=FIRST_PRICE if strikes > 1 else belief.price,
            overdue_s=FALLEN_S,
            doubted=False,
            refused_total=tokens,
        ),
        "refused",
        now + _hold_s(belief),
    )


def _refused_alone(belief: Belief, refusal: Refusal, load: Occupancy, now: float) -> Belief:
    """Nothing else is in flight: the batch is too large, or the service refuses for another
    reason. It is asked again, later each time."""
    since = now if belief.alone_since is None else belief.alone_since
    held = _held(replace(belief, alone_since=since), "refused", now + _hold_s(belief))
    if belief.streak < ALONE_TRIES or now - since < ALONE_S or load.cancelled_jobs:
        return held
    least = refusal.tokens if belief.too_large is None else min(belief.too_large, refusal.tokens)
    return replace(
        belief,
        tokens=belief.tokens.lowered(least - 1),
        too_large=least,
        streak=0,
        alone_since=None,
        growing=False,
    )


def _hold_s(belief: Belief) -> float:
    return min(HOLD_MOST_S, HOLD_FIRST_S * HOLD_FACTOR ** (max(1, belief.streak) - 1))


def _held(belief: Belief, hold: Hold, until: float) -> Belief:
    if belief.hold_until > until:
        return belief
    return replace(belief, hold=hold, hold_until=until)


def day_turns(now: float, retry_after_s: float | None) -> float:
    """When a quota of the day is there again, in seconds since 1970."""
    if retry_after_s is not None and retry_after_s >= TRUSTED_DAY_WAIT_S:
        return now + retry_after_s
    turned = (now - DAY_TURNS_S) // DAY_S * DAY_S + DAY_TURNS_S
    return turned + DAY_S


def released(belief: Belief) -> Belief:
    """A person asks to try at once, whatever was to be waited for."""
    return replace(belief, hold=None, hold_until=0.0)
