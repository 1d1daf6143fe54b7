"""Exit codes are those of the specification."""

import pytest

from embatch import errors
from embatch.cli.exits import ExitCode, code_of_error, code_of_run
from embatch.errors import EmbatchError, error_named
from embatch.types.state import RunState


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.InvalidRequestError("x"), 2),
        (errors.NotFoundError("x"), 2),
        (errors.SpaceMismatchError("x"), 2),
        (errors.DuplicateKeyError("x"), 2),
        (errors.InputError("x"), 1),
        (errors.StorageError("x"), 1),
        (errors.JournalError("x"), 1),
        (errors.AlignmentError("x"), 1),
        (errors.BudgetExceededError("x"), 4),
        (errors.BatchTimeoutError("x", name="b"), 5),
        (OSError("x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_each_error_has_its_code(error: Exception, code: int) -> None:
    """What the user can mend in the call is 2, what broke is 1."""
    assert code_of_error(error) == code


@pytest.mark.parametrize(
    ("state", "facts", "code"),
    [
        (RunState.COMPLETED, {}, ExitCode.DONE),
        (RunState.COMPLETED_WITH_FAILURES, {"failed": 1, "written": 99}, ExitCode.FAILED_ROWS),
        (RunState.FAILED, {"error_code": "StorageError"}, ExitCode.FAILED),
        (RunState.FAILED, {"error_code": "DuplicateKeyError"}, ExitCode.USAGE),
        (RunState.FAILED, {"error_code": None}, ExitCode.FAILED),
        (RunState.OVER_BUDGET, {}, ExitCode.BUDGET),
        (RunState.NEEDS_PERSON, {}, ExitCode.UNFINISHED),
        (RunState.PARKED, {}, ExitCode.UNFINISHED),
        (RunState.RUNNING, {}, ExitCode.UNFINISHED),
        (RunState.PLANNING, {}, ExitCode.UNFINISHED),
        (RunState.CANCELLED, {}, ExitCode.UNFINISHED),
    ],
)
def test_each_end_of_a_run_has_its_code(
    make_status, state: RunState, facts: dict[str, object], code: ExitCode
) -> None:
    """The code follows from the run's state, its failed rows and its error."""
    assert code_of_run(make_status(state=state, **facts)) == code


def test_an_error_survives_the_journal() -> None:
    """The name of its class and its message give the error back."""
    error = error_named("DuplicateKeyError", "key 'a' stands twice")
    assert type(error) is errors.DuplicateKeyError
    assert str(error) == "key 'a' stands twice"


@pytest.mark.parametrize("name", [None, "", "NoSuchError", "BatchTimeoutError", "error_named"])
def test_an_unknown_error_is_a_plain_one(name: str | None) -> None:
    """What cannot be made from a message alone is still an EmbatchError."""
    assert type(error_named(name, "x")) is EmbatchError
