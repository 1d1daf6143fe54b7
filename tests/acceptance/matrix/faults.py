"""The matrix's lines: what goes wrong, where it applies, and what of it may be bought again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from embatch.testing.cloud import Fault

On = Literal["gemini", "vertex"]
CLOUDS: Final[tuple[On, ...]] = ("gemini", "vertex")
GEMINI: Final[tuple[On, ...]] = ("gemini",)
VERTEX: Final[tuple[On, ...]] = ("vertex",)

POISON: Final = "poison"
"""Stands in texts that a service may refuse for good."""
BRITTLE: Final = "brittle"
"""Stands in texts that a service may refuse for now."""
SETTLE_S: Final = 2.0
STUCK_S: Final = 4.0

_ROUTES: Final[dict[On, dict[str, str]]] = {
    "gemini": {
        "create": "batches.create",
        "get": "batches.get",
        "list": "batches.list",
        "upload": "files.upload",
        "download": "files.download",
        "embed": "models.batchEmbedContents",
    },
    "vertex": {
        "create": "vertex.jobs.create",
        "get": "vertex.jobs.get",
        "list": "vertex.jobs.list",
        "upload": "storage.put",
        "download": "storage.get",
        "embed": "vertex.*mbedContent*",
    },
}


_SPOILING: Final = frozenset(
    {
        *("missing_rows", "null_vector", "null_value", "nan", "overflow", "wrong_dims"),
        *("zero_vector", "broken_line"),
    }
)
_MISALIGNING: Final = frozenset({"swap_values", "foreign_rows", "doubled_rows"})
_OF_JOBS: Final = _SPOILING | {
    *("swap_values", "foreign_rows", "doubled_rows", "unknown_rows", "job_stuck", "job_expired"),
    *("job_failed", "job_cancelled", "input_lost"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A fault of the fake cloud, its call named the same on both clouds."""

    kind: str
    at: str = ""
    """create, get, list, upload, download, embed; "" for faults that befall jobs."""
    times: int | None = None
    skip: int = 0
    """Calls or jobs that it lets through first."""
    chance: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)

    def fault(self, on: On, name: str) -> Fault:
        """The fault for one cloud, under a name that draws its lots."""
        match = {"route": _ROUTES[on][self.at]} if self.at else {}
        return Fault(
            self.kind,
            match,
            times=self.times,
            probability=self.chance,
            after=self.skip,
            args=self.args,
            id=name,
        )

    def wasted_rows(self, batch_items: int) -> int:
        """Rows that each strike makes us pay for once more: those that are served and cannot be
        used, or the whole batch where nobody can tell which those are."""
        harmless = self.args.get("identical", self.kind == "doubled_rows")
        if self.kind in _MISALIGNING and not harmless:
            return batch_items
        return int(self.args.get("count", 1)) if self.kind in _SPOILING else 0

    @property
    def befalls_jobs(self) -> bool:
        """It strikes at jobs and what they answer, not at calls."""
        return not self.at and self.kind in _OF_JOBS


def strike(
    kind: str,
    at: str = "",
    *,
    times: int | None = None,
    skip: int = 0,
    chance: float = 1.0,
    **args: Any,
) -> Strike:
    """A fault in one line."""
    return Strike(kind=kind, at=at, times=times, skip=skip, chance=chance, args=args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the matrix."""

    name: str
    strikes: tuple[Strike, ...]
    on: tuple[On, ...] = CLOUDS
    poisoned: bool = False
    """Rows with POISON fail for good."""
    flags: tuple[str, ...] = ()
    probe: bool = False
    """Never without its probe."""
    alone: bool = True
    """One fault: the run's report of what was bought again must be exact, else never too low."""
    mixed: bool = False
    """So many faults that one may leave another nothing to strike at."""
    kill_at: tuple[str, ...] = ()
    """Where the first kills come, as killable.py takes it; the others come by lot."""
    sweeps: bool = False
    """After each kill the service loses every input that was uploaded, as it does in time."""


def _line(name: str, *strikes: Strike, **more: Any) -> Line:
    return Line(name=name, strikes=strikes, **more)


def _outage(code: int) -> tuple[Strike, ...]:
    """A 5xx at every kind of call; at creates before and after they take effect."""
    return (
        strike("server_error", "create", times=1, code=code),
        strike("server_error", "create", times=1, skip=1, code=code, after=True),
        strike("server_error", "get", times=2, code=code),
        strike("server_error", "list", times=1, code=code),
        strike("server_error", "upload", times=1, code=code),
        strike("server_error", "download", times=1, code=code),
    )


_STUCK: Final = ("--stuck-after", f"{STUCK_S:g}s")
_AUDIT_ALL: Final = ("--audit", "all")
_SMALL_PAGES: Final = (
    strike("small_pages", size=1),
    strike("empty_pages"),
    strike("reset_after", "create", times=2, skip=2),
)

LINES: Final[tuple[Line, ...]] = (
    _line("nothing", probe=True),
    _line(
        "429 under a hidden token ceiling",
        strike("token_ceiling", tokens=1_000),
        strike("job_duration", seconds=0.6),
    ),
    _line(
        "spurious 429",
        strike("rate_limited", "create", times=1, hints="none"),
        strike("rate_limited", "get", times=2, hints="minute", retry_delay_s=0.5),
    ),
    _line("500", *_outage(500)),
    _line("503", *_outage(503)),
    _line("504", *_outage(504)),
    _line("reset before a create", strike("reset_before", "create", times=2, skip=1)),
    _line(
        "reset after a create",
        strike("listing_delay", times=3, seconds=0.7),
        strike("reset_after", "create", times=3),
    ),
    _line(
        "broken upload chunk",
        strike("upload_drop", times=3, at_byte=1_000),
        strike("upload_drop", times=1, at_byte=3_000, keep=False),
        strike("upload_answer_lost", times=2),
        on=GEMINI,
    ),
    _line(
        "broken upload",
        strike("reset_before", "upload", times=2),
        strike("reset_after", "upload", times=2, skip=3),
        on=VERTEX,
    ),
    _line(
        "truncated download",
        strike("truncate", "download", times=3, at_byte=5_000),
        strike("truncate", "download", times=1, skip=3, at_byte=700, reset=False),
        strike("truncate", "get", times=2, at_byte=100),
    ),
    _line("results shuffled", strike("shuffle")),
    _line(
        "values under wrong keys",
        strike("swap_values", times=2, count=6),
        flags=_AUDIT_ALL,
    ),
    _line("missing rows", strike("missing_rows", times=3, count=3)),
    _line("doubled rows", strike("doubled_rows", times=4, count=3)),
    _line(
        "rows doubled with other values",
        strike("doubled_rows", times=1, count=2, identical=False),
    ),
    _line("unknown rows", strike("unknown_rows", times=1, count=2)),
    _line("rows of another job", strike("foreign_rows", times=1, count=2)),
    _line("transient row errors", strike("row_error", code=13, transient=True, marker=BRITTLE)),
    _line("permanent row errors", strike("row_error", code=3, marker=POISON), poisoned=True),
    _line("NaN", strike("nan", times=2, count=2)),
    _line("wrong dims", strike("wrong_dims", times=2, count=2)),
    _line("zero vectors", strike("zero_vector", times=2, count=2)),
    _line(
        "no vectors",
        strike("null_vector", times=1, count=2),
        strike("null_vector", times=1, count=2, shape="no_response"),
        strike("null_value", times=1, count=2),
        strike("overflow", times=1, count=2),
    ),
    _line("broken lines", strike("broken_line", times=2, count=2)),
    _line("stuck", strike("job_stuck", times=1), flags=_STUCK),
    _line(
        "stuck, cancelled with partial results",
        strike("job_stuck", times=1),
        strike("cancel_partial", times=1, share=0.5),
        flags=_STUCK,
    ),
    _line("expired", strike("job_expired", times=2)),
    _line("failed by quota", strike("job_failed", times=2)),
    _line("failed by quota with partial results", strike("job_failed", times=2, share=0.5)),
    _line("cancelled with partial results", strike("job_cancelled", times=2, share=0.5)),
    _line(
        "SUCCEEDED with failed rows",
        strike("row_error", code=3, marker=POISON),
        strike("row_error", code=14, transient=True, marker=BRITTLE),
        strike("job_partial"),
        poisoned=True,
        on=VERTEX,
    ),
    _line(
        "SUCCEEDED with failed rows",
        strike("job_stuck", times=1),
        strike("cancel_late", times=1, share=0.5),
        strike("row_error", code=3, marker=POISON),
        poisoned=True,
        on=GEMINI,
        flags=_STUCK,
    ),
    _line(
        "unknown state word",
        strike("state_word", times=4, word="BATCH_STATE_MENDING", when="running"),
        strike("state_word", times=4, word="BATCH_STATE_PERFECTED", when="end"),
        strike("state_prefix", times=10),
        strike("stats_missing", times=10),
    ),
    _line(
        "GET 503 while the list works",
        strike("server_error", "get", times=4, code=503),
        strike("reset_after", "create", times=2),
    ),
    _line(
        "small list pages",
        *_SMALL_PAGES,
        strike("foreign_jobs", count=2),
        strike("stale_stats"),
        on=GEMINI,
    ),
    _line("small list pages", *_SMALL_PAGES, on=VERTEX),
    _line(
        "vanished files",
        strike("file_vanished", "download", times=2),
        on=GEMINI,
        kill_at=("upload.done:3", "submit.intended:2"),
        sweeps=True,
    ),
    _line(
        "vanished files",
        on=VERTEX,
        kill_at=("upload.done:3", "submit.intended:2"),
        sweeps=True,
    ),
    _line("input lost", strike("input_lost", times=2)),
    _line("late result files", strike("result_late", seconds=1.5), on=GEMINI),
    _line("results in several files", strike("output_shards", count=3), on=VERTEX),
    _line("tokens that end", strike("unauthenticated", "get", times=1), on=VERTEX),
    _line("no usage told", strike("usage_missing")),
    _line(
        "all together",
        strike("token_ceiling", tokens=3_000),
        strike("rate_limited", "create", times=2, chance=0.3, hints="minute", retry_delay_s=1.0),
        strike("reset_before", "create", times=1, skip=3),
        strike("reset_after", "create", times=2, skip=4),
        strike("server_error", "create", times=1, skip=6, code=503, after=True),
        strike("server_error", "get", times=6, chance=0.2, code=503),
        strike("server_error", "list", times=1, code=500),
        strike("server_error", "upload", times=2, chance=0.3, code=504),
        strike("server_error", "download", times=2, chance=0.3, code=500),
        strike("upload_drop", times=2, at_byte=1_000),
        strike("truncate", "download", times=2, at_byte=5_000),
        strike("shuffle"),
        strike("swap_values", times=1, count=4),
        strike("missing_rows", times=1, count=2),
        strike("doubled_rows", times=2, count=2),
        strike("doubled_rows", times=1, skip=3, count=1, identical=False),
        strike("unknown_rows", times=1, skip=4, count=1),
        strike("row_error", code=13, transient=True, marker=BRITTLE),
        strike("row_error", code=3, marker=POISON),
        strike("nan", times=1, count=1),
        strike("wrong_dims", times=1, skip=1, count=1),
        strike("zero_vector", times=1, skip=2, count=1),
        strike("job_stuck", times=1, skip=2),
        strike("cancel_partial", times=1, share=0.5),
        strike("job_expired", times=1, skip=3),
        strike("job_failed", times=1, skip=1, share=0.5),
        strike("job_cancelled", times=1, skip=4, share=0.5),
        strike("state_word", times=3, word="BATCH_STATE_MENDING", when="running"),
        strike("small_pages", size=2),
        strike("file_vanished", "download", times=1),
        strike("result_late", times=3, seconds=0.5),
        poisoned=True,
        probe=True,
        alone=False,
        mixed=True,
        flags=(*_STUCK, *_AUDIT_ALL),
    ),
)
"""Every line. The last has them all."""


def merged(name: str, on: On, names: Sequence[str]) -> Line:
    """Several lines as one: their faults one after the other, each with jobs of its own."""
    lines = [line for line in LINES if line.name in names and on in line.on]
    strikes = [
        replace(one, skip=one.skip + turn) if one.befalls_jobs else one
        for turn, line in enumerate(lines)
        for one in line.strikes
    ]
    flags = dict.fromkeys(line.flags for line in lines)
    return Line(
        name=name,
        strikes=tuple(strikes),
        on=(on,),
        poisoned=any(line.poisoned for line in lines),
        flags=tuple(word for some in flags for word in some),
        probe=any(line.probe for line in lines),
        alone=len(lines) == 1 and lines[0].alone,
        mixed=any(line.mixed for line in lines),
        kill_at=tuple(place for line in lines for place in line.kill_at),
        sweeps=any(line.sweeps for line in lines),
    )
