"""What is believed of a run's quota, in figures and in words."""

from dataclasses import dataclass

from embatch.journal.store import Journal
from embatch.runs.quota import Belief

_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))
_AGES = ((2 * 86_400.0, 86_400.0, "days"), (2 * 3600.0, 3600.0, "h"), (60.0, 60.0, "min"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """The learned quota at one moment. Times are seconds since 1970."""

    scope: str
    """What shares it: provider, project (or a mark of the key) and model."""
    ceiling_tokens: int | None
    """So many may be in flight, in our own estimate; None: no ceiling was met."""
    ceiling_jobs: int | None
    tokens_in_flight: int
    """Of all runs of this journal, those included that were cancelled and may still count."""
    jobs_in_flight: int
    accepted: int
    """Creates that the service took."""
    refused: int
    """Creates that it answered by 429."""
    last_refused_at: float | None
    waits_for: str | None
    """Why nothing is created now: "minute", "day" or "refused"; None: something may be."""
    waits_until: float | None
    words: str
    """The same for people."""


def read_quota(journal: Journal, run_id: str, *, now: float) -> QuotaStatus | None:
    """The quota that the run's latest job counts against; None before its first."""
    scopes = journal.quotas.scopes_of(run_id)
    if not scopes:
        return None
    belief = Belief.from_json(journal.quotas.believed(scopes[0]))
    load = journal.quotas.occupancy(scopes[0], now=now)
    held = belief.hold_until > now
    return QuotaStatus(
        scope=scopes[0],
        ceiling_tokens=belief.tokens.most,
        ceiling_jobs=belief.jobs.most,
        tokens_in_flight=load.tokens,
        jobs_in_flight=load.jobs,
        accepted=belief.accepted,
        refused=belief.refused,
        last_refused_at=belief.refused_at,
        waits_for=belief.hold if held else None,
        waits_until=belief.hold_until if held else None,
        words=_words(belief, load.tokens, load.jobs, now),
    )


def _words(belief: Belief, tokens: int, jobs: int, now: float) -> str:
    limits = []
    if belief.tokens.most is not None:
        limits.append(f"{amount(belief.tokens.most)} tokens")
    if belief.jobs.most is not None:
        limits.append(f"{belief.jobs.most} jobs")
    parts = [f"ceiling {' and '.join(limits)}" if limits else "no ceiling met"]
    parts.append(f"{amount(tokens)} in {jobs} {'job' if jobs == 1 else 'jobs'} in flight")
    if belief.refused_at is not None:
        parts.append(f"last 429 {age(now - belief.refused_at)} ago")
    return ", ".join(parts)


def amount(tokens: int) -> str:
    """2,140,000 as "≈ 2.1 M"."""
    for size, unit in _UNITS:
        if tokens >= size:
            value = tokens / size
            return f"≈ {value:.1f}{unit}" if value < 10 else f"≈ {value:.0f}{unit}"
    return f"≈ {tokens}"


def age(seconds: float) -> str:
    """Seconds as "40 s", "12 min", "3 h" or "2 days"."""
    for least, size, unit in _AGES:
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
