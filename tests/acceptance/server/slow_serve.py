"""`embatch serve --engine fake` with an engine that takes its time, or that ends by kill -9.

    python slow_serve.py ROW_S LOG KILL_AT ARGUMENTS…

`ROW_S` is what each row costs, in seconds. `LOG` is a file that gets a line for each call of the
engine, the number of its rows; or `-`. `KILL_AT` is `-`, or `EVENT:PATTERN`: the process ends
itself just before the first thing of Python's audit (`open`, `os.rename`, …) with one of its first
two arguments like `PATTERN`. `EVENT:PATTERN>EVENT:PATTERN` waits for the one, then for the other
in the same thread.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from embatch.cli import main
from embatch.testing import engine
from embatch.types.results import Embedded


class SlowEngine(engine.FakeEngine):
    """Takes `row_s` for each row, and writes down how many it did."""

    row_s = 0.0
    log: int | None = None

    def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
        time.sleep(self.row_s * len(texts))
        if self.log is not None:
            os.write(self.log, f"{len(texts)}\n".encode())
        return super().embed(texts, **options)


def die_at(places: list[tuple[str, str]]) -> None:
    """Ends this process by kill -9 when the last of `places` is reached, one after the other."""
    thread: int | None = None

    def hear(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal thread
        event, pattern = places[0]
        if name != event or thread not in (None, threading.get_ident()):
            return
        if any(re.search(pattern, str(argument)) for argument in arguments[:2]):
            if len(places) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            del places[0]
            thread = threading.get_ident()

    sys.addaudithook(hear)


if __name__ == "__main__":
    row_s, log, kill_at, *rest = sys.argv[1:]
    SlowEngine.row_s = float(row_s)
    if log != "-":
        SlowEngine.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    if kill_at != "-":
        steps = [step.partition(":") for step in kill_at.split(">")]
        die_at([(event, pattern) for event, _, pattern in steps])
    engine.FakeEngine = SlowEngine  # type: ignore[misc]
    sys.exit(main(["serve", *rest]))
