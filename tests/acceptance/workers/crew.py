"""A run, a PostgreSQL journal and any number of real worker processes that may be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import forking
from embatch.journal.store import Journal

FAKE_CLI = Path(__file__).parents[1] / "fake_cli.py"
DEADLINE_S = 180.0


def eventually(holds: Callable[[], bool], what: str, *, deadline_s: float = 90.0) -> None:
    """Polls until `holds()`; fails after the deadline, saying `what` did not come true."""
    until = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < until, f"never came true: {what}"
        time.sleep(0.05)


@dataclass
class Crew:
    """Commands over one journal, each in a process of its own; those left are killed at the end."""

    folder: Path
    journal_url: str
    variables: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    """How long a call of the fake local engine takes."""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait(30)

    def environ(self, home: str = "home") -> dict[str, str]:
        """Nothing of the outer environment but the path of the code."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "EMBATCH_HOME": str(self.folder / home),
            "EMBATCH_JOURNAL_URL": self.journal_url,
            "OPENBLAS_NUM_THREADS": "1",
            "COLUMNS": "200",
            **self.variables,
        }

    def type(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command, run to its end, which must be `code` unless that is None."""
        done = forking.run(
            [sys.executable, str(FAKE_CLI), str(self.delay_s), *arguments],
            cwd=self.folder,
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert code is None or done.returncode == code, done.stderr + done.stdout + self.said()
        return done

    def start(self, *arguments: str, home: str = "home") -> subprocess.Popen[bytes]:
        """A command, running; its words go to a file of its own."""
        self.started += 1
        with (self.folder / f"said-{self.started}.txt").open("wb") as file:
            process = forking.Popen(
                [sys.executable, str(FAKE_CLI), str(self.delay_s), *arguments],
                cwd=self.folder,
                env=self.environ(home),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.workers.append(process)
        return process

    def worker(self, *arguments: str, home: str = "home") -> subprocess.Popen[bytes]:
        """A worker, running. Two with different homes are as two machines to the local engine."""
        return self.start("worker", "--log-format", "text", *arguments, home=home)

    def replace(self, worker: subprocess.Popen[bytes], *arguments: str) -> None:
        """SIGKILL, and another in its place."""
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)
        self.workers.remove(worker)
        self.worker(*arguments)

    def said(self) -> str:
        """What all processes have said."""
        files = sorted(self.folder.glob("said-*.txt"))
        return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in files)

    def journal(self) -> Journal:
        """The journal, to be closed by whoever asked."""
        return Journal.open(self.journal_url)

    def write_texts(self, rows: int, name: str = "texts.jsonl") -> None:
        """An input whose texts stand nowhere else."""
        lines = (json.dumps({"id": f"key-{row}", "text": text_of(row)}) for row in range(rows))
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def submit(self, *arguments: str, out: str = "out") -> str:
        """A run that is left to workers. Gives its id."""
        done = self.type(
            *("run", "texts.jsonl", "-o", out, "--key", "id", "--execution", "workers"),
            *("--no-wait", "--json", *arguments),
        )
        shown: dict[str, Any] = json.loads(done.stdout)
        return str(shown["id"])


def text_of(row: int) -> str:
    """A text that stands nowhere else."""
    return f"text number {row} of the catalogue {'and on ' * (row % 5)}"
