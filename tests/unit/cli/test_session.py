"""Every end of a command is an exit code and at most one line."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embatch.cli.session import Session
from embatch.environment import Environment
from embatch.errors import InputError, InvalidRequestError, JournalError

SECRET = "words of a user"


def raising(error: BaseException) -> Callable[..., None]:
    def app(**_: object) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidRequestError("no [b]such[/b] column"), 2, "error: no [b]such[/b] column"),
        (InputError("line 3\nis broken"), 1, "error: line 3 is broken"),
        (OSError(errno.ENOSPC, "No space left", "/x"), 1, "error: /x: No space left"),
    ],
)
def test_an_error_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    """The message as it is, brackets included, on one line of standard error."""
    assert Session().run(raising(error), []) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


def test_a_defect_is_named_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected error tells its kind and place; its message may hold a text and is not told."""
    assert Session().run(raising(ValueError(SECRET)), []) == 1
    err = capsys.readouterr().err
    assert "ValueError at test_session.py:" in err
    assert "--traceback" in err
    assert SECRET not in err
    assert err.count("\n") == 1


def test_a_traceback_comes_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """--traceback shows the frames, and still not the message."""
    session = Session()
    session.show_traceback = True
    assert session.run(raising(ValueError(SECRET)), []) == 1
    err = capsys.readouterr().err
    assert 'test_session.py", line' in err
    assert SECRET not in err


def test_an_error_with_json_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output has the object, standard error the line."""
    session = Session()
    session.as_json = True
    assert session.run(raising(InputError("broken")), []) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"error": "broken", "error_code": "InputError", "exit_code": 1}


def test_an_exit_keeps_its_code() -> None:
    """What a command leaves with is what the shell gets."""
    assert Session().run(raising(SystemExit(3)), []) == 3
    assert Session().run(raising(SystemExit(None)), []) == 0
    assert Session().run(lambda **_: None, []) == 0


def test_a_journal_that_is_away_is_waited_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It says so once; a refusal, and one that stays away, are the error of the command."""
    monkeypatch.setattr("embatch.cli.session.AGAIN_S", 0.0)
    away, tries = JournalError("the server does not answer"), 0
    away.transient = True
    journal, opened = f"sqlite:///{tmp_path / 'journal.db'}", Environment.open

    def back_at_the_third(**_: object) -> Environment:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise away
        return opened(journal=journal)

    monkeypatch.setattr(Environment, "open", back_at_the_third)
    Session().environment(wait_s=60.0).close()
    assert tries == 3
    assert capsys.readouterr().err == "the server does not answer: tried again for 60 s\n"
    tries = 0
    assert Session().run(lambda **_: Session().environment(), []) == 1
    assert tries == 1
    away.transient, tries = False, 0
    assert Session().run(lambda **_: Session().environment(wait_s=60.0), []) == 1
    assert tries == 1
