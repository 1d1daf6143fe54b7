"""`embatch` with a fake engine and a kill -9 at a checkpoint: run as a process by the kill proofs.

    python killable.py KILL_AT TRACE POISON -- ARGUMENTS…

Texts with the word `POISON` fail. `KILL_AT` is `name:n`, the n-th passing of a checkpoint, or `-`.
`TRACE` is a file that gets the name of each checkpoint passed, or `-`.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from embatch.cli import main
from embatch.hooks import Hooks
from embatch.testing.engine import FakeEngine

DIMS = 16


class Checkpoints:
    """Counts the passings of each checkpoint, and dies at the one asked for."""

    def __init__(self, kill_at: str, trace: str) -> None:
        name, _, count = kill_at.rpartition(":")
        self._name, self._count = (name, int(count)) if name else (None, 0)
        self._trace = None if trace == "-" else Path(trace).open("a")  # noqa: SIM115 - kept open
        self._passed = 0
        self._counting = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._counting:
            if self._trace is not None:
                self._trace.write(f"{name}\n")
                self._trace.flush()
            if name == self._name:
                self._passed += 1
                if self._passed == self._count:
                    os.kill(os.getpid(), signal.SIGKILL)


def open_engine(_model: str | None, *, precision: str = "auto") -> FakeEngine:
    """The engine of the proofs: slow enough that a kill at random finds something under way."""
    _ = precision
    return FakeEngine(dims=DIMS, poison=sys.argv[3], delay_s=0.01)


if __name__ == "__main__":
    hooks = Hooks(checkpoint=Checkpoints(sys.argv[1], sys.argv[2]), open_engine=open_engine)
    sys.exit(main(sys.argv[5:], hooks=hooks))
