"""Days that have a name, and what each brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embatch.testing.cloud.faults import Fault, FaultKind

_K = FaultKind


@dataclass(frozen=True, slots=True)
class Preset:
    """A day with a name."""

    sentence: str
    faults: Sequence[Fault]


_EMBED_NOW: Final = "models.*mbedContent*"
_CREATE: Final = "batches.create"


def _fault(
    kind: FaultKind, route: str | None = None, probability: float = 1.0, **args: Any
) -> Fault:
    return Fault(kind, {"route": route} if route else {}, probability=probability, args=args)


PRESETS: Final[Mapping[str, Preset]] = {
    "bad-day": Preset(
        "A bit of everything that a right client survives.",
        [
            _fault(_K.DELAY, probability=0.1, seconds=0.2),
            _fault(_K.RATE_LIMITED, _CREATE, 0.25, retry_after_s=1),
            _fault(_K.RATE_LIMITED, _EMBED_NOW, 0.1, hints="minute", retry_delay_s=1.0),
            _fault(_K.SERVER_ERROR, "batches.get", 0.15, code=503),
            _fault(_K.SERVER_ERROR, "files.download", 0.1, code=500),
            _fault(_K.SERVER_ERROR, "batches.list", 0.1, code=502, html=True),
            _fault(_K.SERVER_ERROR, _CREATE, 0.1, code=504, after=True),
            _fault(_K.RESET_AFTER, _CREATE, 0.15),
            _fault(_K.RESET_BEFORE, "batches.get", 0.1),
            _fault(_K.UPLOAD_DROP, probability=0.3),
            _fault(_K.UPLOAD_ANSWER_LOST, probability=0.1),
            _fault(_K.TRUNCATE, "files.download", 0.2, at_byte=5000),
            _fault(_K.TRICKLE, "files.download", 0.1, bytes=16384),
            _fault(_K.EMPTY_PAGES, probability=0.2),
            _fault(_K.STALE_STATS, probability=0.5),
            _fault(_K.FOREIGN_JOBS, probability=0.5),
            _fault(_K.STATE_PREFIX, probability=0.3),
            _fault(_K.OUTPUT_IN, probability=0.3),
            _fault(_K.JOB_DURATION, probability=0.5, seconds=2.0),
            _fault(_K.SHUFFLE),
            _fault(_K.MISSING_ROWS, probability=0.5, fraction=0.01),
            _fault(
                _K.ROW_ERROR,
                probability=0.5,
                fraction=0.01,
                code=14,
                transient=True,
                message="The service is currently unavailable.",
            ),
            _fault(_K.USAGE_MISSING, probability=0.3),
        ],
    ),
    "shuffle": Preset("Rows come in another order.", [_fault(_K.SHUFFLE)]),
    "missing-rows": Preset(
        "A tenth of the rows of each batch is not there.",
        [_fault(_K.MISSING_ROWS, fraction=0.1)],
    ),
    "doubled-rows": Preset(
        "A tenth of the rows of each batch comes twice.",
        [_fault(_K.DOUBLED_ROWS, fraction=0.1)],
    ),
    "row-errors": Preset(
        "A tenth of the rows fails for good, and a tenth the first time only.",
        [
            _fault(_K.ROW_ERROR, chance=0.1, code=3, message="The row is not valid."),
            _fault(
                _K.ROW_ERROR,
                fraction=0.1,
                code=14,
                transient=True,
                message="The service is currently unavailable.",
            ),
        ],
    ),
    "quota": Preset(
        "429 for every other create and embedding, without a hint when to come again.",
        [_fault(_K.RATE_LIMITED, _CREATE, 0.5), _fault(_K.RATE_LIMITED, _EMBED_NOW, 0.5)],
    ),
    "unavailable": Preset(
        "A third of all calls gets 500, 503 or 504; after the 504 they have taken effect.",
        [
            _fault(_K.SERVER_ERROR, probability=0.1, code=500),
            _fault(_K.SERVER_ERROR, probability=0.15, code=503),
            _fault(_K.SERVER_ERROR, probability=0.1, code=504, after=True),
        ],
    ),
    "dropped-connections": Preset(
        "A third of all calls ends in a reset: before or after they took effect, or in an upload.",
        [
            _fault(_K.RESET_BEFORE, probability=0.15),
            _fault(_K.RESET_AFTER, probability=0.15),
            _fault(_K.UPLOAD_DROP, probability=0.3),
            _fault(_K.UPLOAD_ANSWER_LOST, probability=0.15),
        ],
    ),
    "stuck": Preset("Batches stay RUNNING until they are cancelled.", [_fault(_K.JOB_STUCK)]),
    "expired": Preset("Batches end EXPIRED, without results.", [_fault(_K.JOB_EXPIRED)]),
    "partial-cancel": Preset(
        "Batches take 10 seconds; a cancelled one ends CANCELLED with half of its rows.",
        [_fault(_K.CANCEL_PARTIAL, share=0.5), _fault(_K.JOB_DURATION, seconds=10.0)],
    ),
    "slow": Preset(
        "Batches take 10 seconds and 10 ms a row, calls half a second, results trickle.",
        [
            _fault(_K.JOB_DURATION, seconds=10.0, row_s=0.01),
            _fault(_K.DELAY, seconds=0.5),
            _fault(_K.TRICKLE, "files.download", bytes=65536, pause_s=0.05),
        ],
    ),
}
