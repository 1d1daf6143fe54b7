"""What a command says of a run that others work, and what it refuses before it begins."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embatch.cli import main
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session
from embatch.cli.work import report
from embatch.runs.status import RunStatus
from embatch.types.state import RunState


@pytest.mark.parametrize(
    ("by_workers", "state", "words"),
    [
        (True, RunState.RUNNING, "the workers go on without this command"),
        (True, RunState.NEEDS_PERSON, "go on with: embatch resume r0123456789"),
        (False, RunState.RUNNING, "go on with: embatch resume r0123456789"),
    ],
)
def test_an_interrupted_command_says_what_goes_on_without_it(
    make_status: Callable[..., RunStatus],
    capsys: pytest.CaptureFixture[str],
    state: RunState,
    words: str,
    *,
    by_workers: bool,
) -> None:
    """A run for workers is theirs; another one stands still, and so does one that waits."""
    status = make_status(state=state)
    code = report(Session(), status, ExitCode.INTERRUPTED, by_workers=by_workers)
    assert code == ExitCode.INTERRUPTED
    said = capsys.readouterr().err
    assert words in said
    assert ("embatch cancel" in said) is ("without this command" in words)


def test_queues_are_refused_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of a journal that is a file one machine works every run."""
    monkeypatch.setenv("EMBATCH_HOME", str(tmp_path))
    monkeypatch.delenv("EMBATCH_JOURNAL_URL", raising=False)
    assert main(["worker", "--once", "--queues", "io"]) == ExitCode.USAGE
    assert "--queues is for a journal on PostgreSQL" in capsys.readouterr().err
    assert main(["worker", "--once"]) == ExitCode.DONE
