"""Starts of `embatch` that cost no imports: a process that has them forks one for each command.

    python nursery.py

reads a line of JSON for each order and answers with one. The forked process is as real as any:
it has its own journal connection, threads and sockets, and it can be killed.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
WARM = (
    "embatch.api",
    "embatch.cli.app",
    "embatch.cli.panel",
    "embatch.cli.quote",
    "embatch.cli.work",
    "embatch.client.vertex",
    "embatch.journal.migrations.upgrade",
    "embatch.providers.gemini",
    "embatch.providers.vertex",
    "google.auth.transport.requests",
    "google.oauth2.service_account",
    "obstore.store",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.json",
    "pyarrow.parquet",
)
"""What a run imports on its way."""
POLL_S = 0.002


class Nursery:
    """The test's side: starts commands, and waits for their ends."""

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
        quiet = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            env={"PATH": "/usr/bin:/bin", **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def start(self, *arguments: str, **order: str | dict[str, str]) -> int:
        """Starts `embatch ARGUMENTS…` and gives its process id.

        `order`: `folder` to work in, `environ`, files for `out` and `err`, `kill_at` and `trace`
        as killable.py takes them.
        """
        return int(self._ask({"arguments": arguments, **order}))

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """The return code, negative for a signal; None while it still runs after `timeout_s`."""
        code = self._ask({"wait": pid, "timeout_s": timeout_s})
        return None if code is None else int(code)

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _begin(order: dict[str, Any]) -> int:
    """Forks a command; its parent goes on with the id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environ"])
        for number, name, mode in ((0, os.devnull, os.O_RDONLY), (1, order["out"], None)):
            _redirect(number, name, mode)
        _redirect(2, order["err"], None)
        code = _command(order)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _redirect(number: int, name: str, mode: int | None) -> None:
    kind = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if mode is None else mode
    opened = os.open(name, kind, 0o600)
    os.dup2(opened, number)
    os.close(opened)


def _command(order: dict[str, Any]) -> int:
    from killable import Checkpoints

    from embatch.cli import main
    from embatch.hooks import Hooks

    hooks = Hooks(checkpoint=Checkpoints(order["kill_at"], order["trace"]))
    return main(order["arguments"], hooks=hooks)


def _end(pid: int, timeout_s: float) -> int | None:
    until = time.monotonic() + timeout_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(POLL_S)


if __name__ == "__main__":
    for module in WARM:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        told = _end(asked["wait"], asked["timeout_s"]) if "wait" in asked else _begin(asked)
        print(json.dumps(told), flush=True)
