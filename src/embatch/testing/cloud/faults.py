"""The faults that the fake cloud shows on request: their names, and how one is asked for."""

from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from embatch.errors import InvalidRequestError

Facts = dict[str, Any]
"""What is known of the request, job or row at hand: what a fault's `match` is held against."""


class FaultKind(StrEnum):
    """What can go wrong. `FAULTS` tells what each does, and its arguments."""

    # Answers to a call.
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNAUTHENTICATED = "unauthenticated"
    DELAY = "delay"
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    TRICKLE = "trickle"
    TRUNCATE = "truncate"
    # Files.
    UPLOAD_DROP = "upload_drop"
    UPLOAD_ANSWER_LOST = "upload_answer_lost"
    FILE_VANISHED = "file_vanished"
    FILE_PROCESSING = "file_processing"
    RESULT_LATE = "result_late"
    RANGE_IGNORED = "range_ignored"
    RANGE_SHORT = "range_short"
    # Quotas.
    TOKEN_CEILING = "token_ceiling"  # noqa: S105 # a ceiling of tokens is no password
    JOB_CEILING = "job_ceiling"
    # Lists.
    LISTING_DELAY = "listing_delay"
    SMALL_PAGES = "small_pages"
    EMPTY_PAGES = "empty_pages"
    STALE_STATS = "stale_stats"
    FOREIGN_JOBS = "foreign_jobs"
    # Jobs.
    JOB_DURATION = "job_duration"
    JOB_STUCK = "job_stuck"
    JOB_EXPIRED = "job_expired"
    JOB_FAILED = "job_failed"
    JOB_CANCELLED = "job_cancelled"
    JOB_PARTIAL = "job_partial"
    INPUT_LOST = "input_lost"
    STATE_WORD = "state_word"
    STATE_PREFIX = "state_prefix"
    CANCEL_LATE = "cancel_late"
    CANCEL_PARTIAL = "cancel_partial"
    CANCEL_IGNORED = "cancel_ignored"
    OUTPUT_IN = "output_in"
    STATS_MISSING = "stats_missing"
    # Rows of results.
    SHUFFLE = "shuffle"
    SWAP_VALUES = "swap_values"
    MISSING_ROWS = "missing_rows"
    DOUBLED_ROWS = "doubled_rows"
    UNKNOWN_ROWS = "unknown_rows"
    FOREIGN_ROWS = "foreign_rows"
    ROW_ERROR = "row_error"
    NULL_VECTOR = "null_vector"
    NULL_VALUE = "null_value"
    NAN = "nan"
    OVERFLOW = "overflow"
    WRONG_DIMS = "wrong_dims"
    ZERO_VECTOR = "zero_vector"
    USAGE_MISSING = "usage_missing"
    DIMS_IGNORED = "dims_ignored"
    METADATA_MISSING = "metadata_missing"
    BROKEN_LINE = "broken_line"
    FEWER_VECTORS = "fewer_vectors"
    OUTPUT_SHARDS = "output_shards"
    OVER_LONG_REFUSED = "over_long_refused"


@dataclass(frozen=True, slots=True)
class FaultSheet:
    """What a kind of fault does, and the arguments it takes with their defaults."""

    sentence: str
    args: Facts = field(default_factory=dict)


_ROWS: Final[Facts] = {
    "count": None,
    "fraction": None,
    "indices": None,
    "marker": None,
    "chance": None,
}
"""How rows are chosen: so many; a share (at least one); by index; by a word in the text; by lot
for each row. None of them given: one row, or for `row_error` all."""
_HINTS: Final[Facts] = {
    "hints": "none",
    "retry_delay_s": 33.4,
    "retry_after_s": None,
    "as_date": False,
}
"""Details of a 429: none | minute | day | misleading (a day's quota with a delay of seconds);
`retry_after_s` sets the HTTP header, `as_date` spells it as the time of day it leads to."""

_K = FaultKind
FAULTS: Final[dict[FaultKind, FaultSheet]] = {
    _K.RATE_LIMITED: FaultSheet("429 without a cause.", _HINTS),
    _K.SERVER_ERROR: FaultSheet(
        "500, 502, 503 or 504; `html` answers a proxy's page; `after`: the call takes effect.",
        {"code": 503, "html": False, "after": False},
    ),
    _K.UNAUTHENTICATED: FaultSheet("401, as for a token that ran out."),
    _K.DELAY: FaultSheet(
        "The answer comes late; `after`: the call takes effect first.",
        {"seconds": 1.0, "after": False},
    ),
    _K.RESET_BEFORE: FaultSheet("The connection is reset and nothing happened."),
    _K.RESET_AFTER: FaultSheet("The call takes effect, then the connection is reset."),
    _K.TRICKLE: FaultSheet("The answer's body comes slowly.", {"bytes": 64, "pause_s": 0.02}),
    _K.TRUNCATE: FaultSheet(
        "The answer's body ends early, with a reset or a plain close.",
        {"at_byte": 1000, "reset": True},
    ),
    _K.UPLOAD_DROP: FaultSheet(
        "The connection is reset inside an upload, at a byte of the file; `every_bytes` repeats"
        " it; without `keep` what came of the chunk is forgotten.",
        {"at_byte": 1000, "every_bytes": None, "keep": True},
    ),
    _K.UPLOAD_ANSWER_LOST: FaultSheet("The chunk is stored, then the connection is reset."),
    _K.FILE_VANISHED: FaultSheet("403 for a file's get, download or use in a create."),
    _K.FILE_PROCESSING: FaultSheet("An uploaded file is PROCESSING at first.", {"seconds": 1.0}),
    _K.RESULT_LATE: FaultSheet(
        "404 for a result file, `seconds` of the clock after the job's end; None: always.",
        {"seconds": None},
    ),
    _K.RANGE_IGNORED: FaultSheet("A download with Range answers 200 and everything."),
    _K.RANGE_SHORT: FaultSheet(
        "A download with an open Range answers 206 with at most `bytes` of what was asked for.",
        {"bytes": 1000},
    ),
    _K.TOKEN_CEILING: FaultSheet(
        "429 at a create that brings the model's enqueued tokens over `tokens`;"
        " `steps` [[clock seconds since the fault was set, tokens], …] move it.",
        {"tokens": 500_000, "steps": [], **_HINTS},
    ),
    _K.JOB_CEILING: FaultSheet(
        "429 at a create over `jobs` unfinished jobs.", {"jobs": 100, **_HINTS}
    ),
    _K.LISTING_DELAY: FaultSheet(
        "A created job shows up in list after `seconds` of the clock.", {"seconds": 60.0}
    ),
    _K.SMALL_PAGES: FaultSheet("No page of a list holds more.", {"size": 2}),
    _K.EMPTY_PAGES: FaultSheet(
        "An empty page with a token comes before each page; `first_only`: before the first.",
        {"first_only": False},
    ),
    _K.STALE_STATS: FaultSheet("Listed jobs count all rows as pending."),
    _K.FOREIGN_JOBS: FaultSheet("The list shows generate jobs of others.", {"count": 1}),
    _K.JOB_DURATION: FaultSheet(
        "The job takes so long, in seconds of the clock.", {"seconds": 0.05, "row_s": 0.0}
    ),
    _K.JOB_STUCK: FaultSheet(
        "The job stays as it is while the fault stands.", {"state": "RUNNING"}
    ),
    _K.JOB_EXPIRED: FaultSheet("The job ends EXPIRED, without results."),
    _K.JOB_FAILED: FaultSheet(
        "The job ends FAILED; `share` of its rows is served.",
        {"code": 8, "message": "Resource has been exhausted (e.g. check quota).", "share": 0.0},
    ),
    _K.JOB_CANCELLED: FaultSheet("The service cancels the job; `share` is served.", {"share": 0.0}),
    _K.JOB_PARTIAL: FaultSheet("A Vertex job with failed rows ends PARTIALLY_SUCCEEDED."),
    _K.INPUT_LOST: FaultSheet("The job fails: its input is gone."),
    _K.STATE_WORD: FaultSheet(
        "The state reads `word`; `when` the job is at its end or running.",
        {"word": "BATCH_STATE_PAUSED", "when": "end"},
    ),
    _K.STATE_PREFIX: FaultSheet(
        "Another prefix in place of BATCH_STATE_: JOB_STATE_, or none.", {"prefix": "JOB_STATE_"}
    ),
    _K.CANCEL_LATE: FaultSheet(
        "A cancelled job ends SUCCEEDED; rows not served have code 1.", {"share": 0.5}
    ),
    _K.CANCEL_PARTIAL: FaultSheet(
        "A cancelled job ends CANCELLED with a share of its rows.", {"share": 0.5}
    ),
    _K.CANCEL_IGNORED: FaultSheet("A cancelled job goes on and completes."),
    _K.OUTPUT_IN: FaultSheet(
        "Results stand in one place only: metadata or response.", {"place": "response"}
    ),
    _K.STATS_MISSING: FaultSheet("No batchStats."),
    _K.SHUFFLE: FaultSheet("Rows come in another order."),
    _K.SWAP_VALUES: FaultSheet("Values of the chosen rows stand under one another's keys.", _ROWS),
    _K.MISSING_ROWS: FaultSheet("The chosen rows are not there.", _ROWS),
    _K.DOUBLED_ROWS: FaultSheet(
        "The chosen rows come twice; not `identical`: with two vectors.",
        {**_ROWS, "identical": True},
    ),
    _K.UNKNOWN_ROWS: FaultSheet("Rows under keys that nobody sent.", {"count": 1}),
    _K.FOREIGN_ROWS: FaultSheet("Rows under keys of another job.", {"count": 1}),
    _K.ROW_ERROR: FaultSheet(
        "The chosen rows fail. `message` None leaves it out; `transient`: only in the first"
        " `fails` jobs that hold the text (by lot: drawn anew each job); `details` adds objects.",
        {
            **_ROWS,
            "code": 13,
            "message": "Internal error encountered.",
            "transient": False,
            "fails": 1,
            "details": False,
        },
    ),
    _K.NULL_VECTOR: FaultSheet(
        "The chosen rows have no vector: null | empty | absent | no_response.",
        {**_ROWS, "shape": "null"},
    ),
    _K.NULL_VALUE: FaultSheet("One value is null.", _ROWS),
    _K.NAN: FaultSheet('One value is "NaN"; `bare`: without quotes.', {**_ROWS, "bare": False}),
    _K.OVERFLOW: FaultSheet("One value is 1e400.", _ROWS),
    _K.WRONG_DIMS: FaultSheet(
        "The vector has other dims; None: one less.", {**_ROWS, "dims": None}
    ),
    _K.ZERO_VECTOR: FaultSheet("All values are 0.", _ROWS),
    _K.USAGE_MISSING: FaultSheet("No token counts."),
    _K.DIMS_IGNORED: FaultSheet("The full vector comes, whatever was asked."),
    _K.METADATA_MISSING: FaultSheet("Keys and metadata are not echoed."),
    _K.BROKEN_LINE: FaultSheet("The chosen lines of a result file are cut in half.", _ROWS),
    _K.FEWER_VECTORS: FaultSheet("An interactive answer lacks its last vectors.", {"count": 1}),
    _K.OUTPUT_SHARDS: FaultSheet("Vertex writes several output files.", {"count": 3}),
    _K.OVER_LONG_REFUSED: FaultSheet(
        "A text over the model's limit is a 400, in a batch a row error."
    ),
}
"""What each kind does, and its `args` with their defaults."""

ROW_KINDS: Final = frozenset(kind for kind, sheet in FAULTS.items() if "marker" in sheet.args)
"""Kinds that choose rows."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, as `Fault("server_error", {"route": "batches.get"}, times=2)`.

    `match` holds patterns (`*` allowed) for facts of the call or job: `route`, `method`, `path`,
    `api` ("gemini", "vertex", "storage"), `model`, `display_name`, `name`, `file`.
    """

    kind: str
    """A `FaultKind`; ValueError for an unknown one."""
    match: Facts = field(default_factory=dict)
    times: int | None = None
    """How often it strikes: calls, or jobs for the kinds that befall jobs. None: without end."""
    probability: float = 1.0
    """Chance to strike at each match, drawn from the cloud's seed."""
    after: int = 0
    """How many matches pass first."""
    args: Facts = field(default_factory=dict)
    """As `FAULTS` lists them for the kind; InvalidRequestError names one it does not know."""
    id: str = ""
    """Name to remove it by; made up when empty."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.args) - set(self.sheet.args))
        if unknown:
            raise InvalidRequestError(
                f"Fault {self.kind!r} has no argument {', '.join(unknown)}; it takes"
                f" {', '.join(self.sheet.args) or 'none'}."
            )

    @property
    def sheet(self) -> FaultSheet:
        """What its kind does."""
        return FAULTS[FaultKind(self.kind)]

    def arg(self, name: str) -> Any:
        """An argument, or its default."""
        return self.args.get(name, self.sheet.args[name])

    def fits(self, facts: Facts) -> bool:
        """Every pattern of `match` fits its fact."""
        return all(
            fnmatchcase(str(facts.get(name, "")), str(pattern))
            for name, pattern in self.match.items()
        )

    def to_json(self) -> Facts:
        """Plain values, as `Fault(**values)` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}
