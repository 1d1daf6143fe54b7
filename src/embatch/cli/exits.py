"""Exit codes, and which of them an error or the state of a run means."""

from enum import IntEnum
from typing import TYPE_CHECKING

from embatch.errors import (
    BatchTimeoutError,
    BudgetExceededError,
    ConfigError,
    DuplicateKeyError,
    InvalidRequestError,
    NotFoundError,
    SpaceMismatchError,
    error_named,
)
from embatch.types.state import RunState

if TYPE_CHECKING:
    from embatch.runs.status import RunStatus


class ExitCode(IntEnum):
    """What the command tells the shell (spec.md section 2)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FAILED_ROWS = 3
    BUDGET = 4
    UNFINISHED = 5
    INTERRUPTED = 130
    TERMINATED = 143


_BY_ERROR: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (InvalidRequestError, ExitCode.USAGE),
    (NotFoundError, ExitCode.USAGE),
    (SpaceMismatchError, ExitCode.USAGE),
    (DuplicateKeyError, ExitCode.USAGE),
    (BudgetExceededError, ExitCode.BUDGET),
    (BatchTimeoutError, ExitCode.UNFINISHED),
)


def code_of_error(error: BaseException) -> ExitCode:
    """The exit code of a command that ends with `error`."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)


def code_of_run(status: "RunStatus") -> ExitCode:
    """The exit code of a command that waited for this run."""
    match status.state:
        case RunState.COMPLETED | RunState.COMPLETED_WITH_FAILURES:
            sound = not status.failed and status.success_pct >= status.alert_below_pct
            return ExitCode.DONE if sound else ExitCode.FAILED_ROWS
        case RunState.FAILED:
            return code_of_error(error_named(status.error_code, ""))
        case RunState.OVER_BUDGET:
            return ExitCode.BUDGET
        case _:
            return ExitCode.UNFINISHED
