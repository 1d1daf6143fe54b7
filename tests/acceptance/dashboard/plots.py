"""What is told of each run in the journal of the dashboard's tests and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from embatch.types.state import BatchState

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What is to be told of one run."""

    id: str
    name: str
    rows: int
    items: int
    """Rows of a batch."""
    ago_s: float
    """The run began so long ago."""
    gap_s: float
    """Seconds between the starts of two batches."""
    job_s: float = 900.0
    stops_s: float = 0.0
    """Nothing has happened for so many seconds."""
    state: str = "running"
    worked: bool = True
    cap_usd: float | None = None
    failed: int = 0
    """Rows without a vector."""
    blocked: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Batches that wait: reason and detail, by number."""
    odd: Mapping[int, BatchState] = field(default_factory=dict)
    """Batches that stand elsewhere than on their way."""
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    resume_in_s: float | None = None
    provider: str = "gemini"
    execution: str = "threads"


PLOTS = (
    Plot(
        id="7c1e90ab42d1",
        name="wiki-chunks",
        rows=640_000,
        items=4_000,
        ago_s=31 * HOUR,
        gap_s=9.0,
        state="completed",
        tags={"team": "search"},
    ),
    Plot(
        id="52b77d0e9f10",
        name="products-fr",
        rows=90_000,
        items=1_500,
        ago_s=7 * HOUR,
        gap_s=30.0,
        state="completed_with_failures",
        failed=6_120,
        tags={"team": "shop"},
    ),
    Plot(
        id="a04d11c3587e",
        name="papers-2026",
        rows=800_000,
        items=4_000,
        ago_s=5 * HOUR,
        gap_s=60.0,
        stops_s=1.6 * HOUR,
        state="over_budget",
        cap_usd=5.0,
        error="the cap of $5.00 bears no further batch. "
        "Go on with: embatch resume a04d11c3587e --max-cost 6.40",
    ),
    Plot(
        id="e3390f6b7a25",
        name="reviews-de",
        rows=250_000,
        items=2_500,
        ago_s=3.4 * HOUR,
        gap_s=100.0,
        stops_s=0.4 * HOUR,
        state="needs_person",
        failed=220,
        blocked={
            71: (
                "person",
                "batch 71 was submitted, its answer was lost, and the provider's list cannot be "
                "read to its end: embatch resolve e3390f6b7a25 71 --adopt NAME, or --absent",
            )
        },
        odd={71: BatchState.SUBMITTING},
    ),
    Plot(
        id="90cc25e1d0b8",
        name="legal-archive",
        rows=1_200_000,
        items=5_000,
        ago_s=6.2 * HOUR,
        gap_s=120.0,
        stops_s=1.1 * HOUR,
        state="parked",
        cap_usd=12.0,
        resume_in_s=3.9 * HOUR,
        tags={"team": "legal"},
    ),
    Plot(
        id="11f8a6d4c3e2",
        name="support-tickets",
        rows=480_000,
        items=4_000,
        ago_s=2.1 * HOUR,
        gap_s=90.0,
        stops_s=1.2 * HOUR,
        worked=False,
        failed=12,
        tags={"team": "support"},
    ),
    Plot(
        id="c9d2047be86f",
        name="catalogue-2026",
        rows=3_000_000,
        items=5_000,
        ago_s=2.7 * HOUR,
        gap_s=25.0,
        cap_usd=24.0,
        failed=2_431,
        blocked={384: ("quota", "429, the ceiling of enqueued tokens is reached")},
        odd={
            57: BatchState.SPLIT,
            203: BatchState.FAILED,
            288: BatchState.QUARANTINED,
            341: BatchState.EXPIRED,
        },
        tags={"team": "search", "env": "prod"},
        execution="workers",
    ),
    Plot(
        id="f47700b1a95c",
        name="forum-2019",
        rows=0,
        items=1,
        ago_s=95.0,
        gap_s=1.0,
        state="planning",
    ),
)
LARGE = Plot(
    id="0b6e8d33fa71",
    name="web-archive",
    rows=20_000_000,
    items=2_000,
    ago_s=20 * HOUR,
    gap_s=9.5,
    cap_usd=140.0,
    failed=18_240,
    odd={
        number: state
        for place, state in enumerate((BatchState.FAILED, BatchState.EXPIRED, BatchState.SPLIT))
        for number in range(37 + 400 * place, 7_000, 1_237)
    },
)
"""10,000 batches."""
