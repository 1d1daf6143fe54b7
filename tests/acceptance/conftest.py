"""The command line as a process in a home of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import forking
from embatch.config import journal_url
from embatch.journal.store import Journal

FAKE_CLI = Path(__file__).with_name("fake_cli.py")
DEADLINE_S = 120


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Types commands in a folder, with a journal of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """Nothing of the outer environment but the path of the code."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "EMBATCH_HOME": str(self.folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            **self.variables,
        }

    def start(self, *arguments: str, delay_s: float = 0.0, **options: Any) -> subprocess.Popen[str]:
        """A command over the fake engine, running."""
        return forking.Popen(
            [sys.executable, str(FAKE_CLI), str(delay_s), *arguments],
            cwd=self.folder,
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def type(
        self, *arguments: str, delay_s: float = 0.0, stdin: str | None = None, real: bool = False
    ) -> Ended:
        """Runs a command to its end; `real` takes `python -m embatch` and the real engine, started
        as a user's is."""
        script = ["-m", "embatch"] if real else [str(FAKE_CLI), str(delay_s)]
        run = subprocess.run if real else forking.run
        done = run(
            [sys.executable, *script, *arguments],
            cwd=self.folder,
            env=self.environ(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """A JSONL file in the folder."""
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder to type in."""
    return Shell(folder=tmp_path)


@pytest.fixture(scope="session")
def shell_in() -> Callable[[Path], Shell]:
    """Makes a shell in a folder that several tests share."""
    return lambda folder: Shell(folder=folder)


@pytest.fixture
def refused(shell: Shell) -> Callable[..., str]:
    """Types a command that must be refused and leave nothing; gives its one line of error."""

    def check(*arguments: str, code: int, real: bool = False, stdin: str | None = None) -> str:
        ended = shell.type(*arguments, real=real, stdin=stdin)
        assert ended.code == code, ended.err
        lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, ended.err
        assert "Traceback" not in ended.err
        assert not (shell.folder / "out").exists(), "an output was left"
        journal = Journal.open(journal_url(str(shell.folder / "home" / "journal.db")))
        assert journal.list_runs() == [], "a run was left"
        journal.close()
        return lines[0]

    return check
