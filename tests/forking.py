"""Starts of Python programs that cost no imports: a process that has them forks one for each.

`Popen` and `run` stand for `subprocess.Popen` and `subprocess.run` where the command is
`[sys.executable, SCRIPT or "-m" MODULE, …]`. The forked process is as real as any: it has its own
connections, threads and files, it ends as an interpreter ends, and it can be killed.
"""

import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

WARM = (
    "embatch.api",
    "embatch.cli.app",
    "embatch.cli.panel",
    "embatch.cli.quote",
    "embatch.cli.work",
    "embatch.client.vertex",
    "embatch.execution.workers",
    "embatch.journal.migrations.upgrade",
    "embatch.providers.gemini",
    "embatch.providers.vertex",
    "embatch.testing.engine",
    "google.auth.transport.requests",
    "google.oauth2.service_account",
    "obstore.store",
    "procrastinate",
    "psycopg",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.json",
    "pyarrow.parquet",
    "typer._adapters",
)
"""What a command imports on its way."""
POLL_S = 0.005
_MESSAGE_BYTES = 200_000


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` whose child is forked by the nursery: only its birth and end differ."""

    def _execute_child(self, *given: Any) -> None:
        """In the place of fork and exec, with the arguments that this Python version gives."""
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments
        assert asked["args"][0] == sys.executable, "the nursery forks Python programs only"
        ours = {"p2cread": 0, "c2pwrite": 1, "errwrite": 2}
        streams = [number if asked[name] == -1 else asked[name] for name, number in ours.items()]
        order = {
            "command": [os.fspath(word) for word in asked["args"][1:]],
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "environ": dict(os.environ if asked["env"] is None else asked["env"]),
            "new_session": asked["start_new_session"],
        }
        self.pid = _nursery().ask(order, streams)
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in _PIPE_ENDS))

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        with self._waitpid_lock:
            if self.returncode is None:
                self.returncode = _nursery().ask({"poll": self.pid})
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self._internal_poll()) is None:
            if until is not None and time.monotonic() > until:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_S)  # it is another's child: there is nothing to wait on
        return code


_PIPE_ENDS = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def run(
    command: list[str],
    *,
    input: str | None = None,  # noqa: A002 - as subprocess.run has it
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, forked."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class _Nursery:
    """The test's side of the socket. It ends with the test process, whatever ends that."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(filter(None, sys.path))
        quiet = {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **quiet},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            ).returncode = 0  # nobody waits for it
        self._asking = threading.Lock()

    def ask(self, order: dict[str, Any], streams: list[int] | None = None) -> Any:
        """Gives a new process's id, or the return code of one polled, None while it runs."""
        with self._asking:
            socket.send_fds(self._socket, [json.dumps(order).encode()], streams or [])
            told = self._socket.recv(_MESSAGE_BYTES)
        assert told, "the nursery is gone"
        return json.loads(told)


@cache
def _nursery() -> _Nursery:
    return _Nursery()


def _serve(orders: socket.socket) -> dict[str, Any]:
    """Forks what is ordered. Returns in a forked process, with its order."""
    while True:
        message, streams, _, _ = socket.recv_fds(orders, _MESSAGE_BYTES, 3)
        if not message:
            sys.exit()
        order = json.loads(message)
        if "poll" in order:
            told: int | None = _ended(order["poll"])
        elif not (told := os.fork()):
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            orders.close()
            return dict(order)
        for stream in streams:
            os.close(stream)
        orders.send(json.dumps(told).encode())


def _ended(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(order: dict[str, Any]) -> None:
    """The program that was ordered, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["new_session"]:
        os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environ"])
    program, *arguments = order["command"]
    if program == "-m":
        program, *arguments = arguments
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [program, *arguments]
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in WARM:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else every child walks, and so copies, all that it has in common with the others
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"threads do not survive a fork: {threads}"
    with contextlib.closing(socket.socket(fileno=int(sys.argv[1]))) as asked_for:
        ordered = _serve(asked_for)
    _become(ordered)
