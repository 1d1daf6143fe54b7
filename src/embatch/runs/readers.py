"""Processes beside this one that read results, one batch each, so that several cores do."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, Final

from embatch.errors import EmbatchError, ProviderUnavailableError
from embatch.providers.base import Provider
from embatch.runs.reading import Answer, Results, Task, join_results, receive_vectors
from embatch.runs.verify import Joined
from embatch.types.results import Matrix

WORTH_VALUES: Final = 1 << 24
"""Numbers in all results of a run from which processes pay: to start one takes as long as to read
some millions."""
MOST: Final = 3
"""Processes at most: each holds about 80 MB."""
CHECK_S: Final = 0.5
"""How often a waiting step looks whether it may go on."""
START_S: Final = 60.0
END_S: Final = 5.0
log = logging.getLogger("embatch.runs")


class _EndedError(Exception):
    """A process ended without an answer."""

    def __init__(self, code: int) -> None:
        """`code` is its exit code, less than 0 for a signal."""
        super().__init__(f"exit code {code}")
        self.code = code


class _Reader:
    """One process."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        # It finds what this process finds, wherever it was started. It multiplies no matrices: the
        # threads of numpy's library would cost an eighth of its start.
        code = (
            "import os, sys; os.environ.setdefault('OPENBLAS_NUM_THREADS', '1'); "
            f"sys.path[:] = {sys.path!r}; "
            f"from embatch.runs.reading import main; main({theirs.fileno()})"
        )
        with theirs:
            # Its standard input is open for as long as this process lives.
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        if not self._connection.poll(START_S):
            raise _EndedError(self.end(kill=True))
        self._received()

    def is_alive(self) -> bool:
        """It has not ended by itself, having been idle for long."""
        return self._process.poll() is None

    def ask(self, task: Task, into: Matrix, check: Callable[[], None]) -> Answer:
        """The answer to a task; `into` takes vectors that come with it.

        `check` may raise to give the task up.
        """
        try:
            self._connection.send(task)
        except ConnectionError:
            raise self._ended() from None
        while not self._connection.poll(CHECK_S):
            check()
        answer: Answer = self._received()
        if task.path is None and not isinstance(answer, EmbatchError):
            try:
                receive_vectors(self._connection, into)
            except (EOFError, ConnectionError):
                raise self._ended() from None
        return answer

    def _received(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None

    def _ended(self) -> _EndedError:
        return _EndedError(self.end())

    def end(self, *, kill: bool = False) -> int:
        """Ends the process and gives its exit code. Safe to call twice."""
        self._connection.close()
        if kill:
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Readers:
    """A few reading processes, started when they are needed. Safe to use from several threads."""

    def __init__(self, most: int | None = None) -> None:
        """`most` None: one for each core, MOST at most."""
        self.most: Final = most or min(len(os.sched_getaffinity(0)), MOST)
        self._places = threading.BoundedSemaphore(self.most)
        self._lock = threading.Lock()
        self._idle: list[_Reader] = []
        self._providers: list[Provider] = []
        self._refused = False

    def pay_for(self, provider: Provider, values: int) -> bool:
        """Whether a run whose results hold so many `values` is read faster by processes."""
        many = self.most > 1 and values >= WORTH_VALUES
        return many and not self._refused and provider.opener is not None

    def read(
        self,
        provider: Provider,
        results: Results,
        into: Matrix,
        path: Path | None,
        check: Callable[[], None],
    ) -> Joined:
        """As `reading.join_results`, in another process. `path` is the file that `into` maps.

        ProviderUnavailableError when the process was killed: all is there to be read again.
        """
        opener = provider.opener
        if opener is None:
            return join_results(provider, results, into, check)
        while not self._places.acquire(timeout=CHECK_S):
            check()
        try:
            reader = self._take()
            if reader is None:
                return join_results(provider, results, into, check)
            number = self._number(provider)
            task = Task(provider=number, opener=opener, results=results, path=path)
            answer = self._answer(reader, task, into, check)
        except _EndedError as ended:
            raise ProviderUnavailableError(
                f"the process that read the results of {results.remote_name} was ended ({ended}): "
                "they are read again"
            ) from None
        finally:
            self._places.release()
        if isinstance(answer, EmbatchError):
            raise answer
        return replace(answer, vectors=into)

    def _answer(
        self, reader: _Reader, task: Task, into: Matrix, check: Callable[[], None]
    ) -> Answer:
        try:
            answer = reader.ask(task, into, check)
        except BaseException:
            reader.end(kill=True)
            raise
        with self._lock:
            self._idle.append(reader)
        return answer

    def _take(self) -> _Reader | None:
        """An idle process or a new one; None where none can be started."""
        with self._lock:
            while self._idle:
                reader = self._idle.pop()
                if reader.is_alive():
                    return reader
                reader.end()
        try:
            return _Reader()
        except (OSError, _EndedError) as error:
            if isinstance(error, _EndedError) and error.code < 0:
                raise  # killed, as any process may be
            self._refused = True
            log.warning("results are read on one core: no process can be started (%s)", error)
            return None

    def _number(self, provider: Provider) -> int:
        with self._lock:
            for number, known in enumerate(self._providers):
                if known is provider:
                    return number
            self._providers.append(provider)
            return len(self._providers) - 1

    def close(self) -> None:
        """Ends the processes. Safe to call twice; the next reading starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._providers.clear()
        for reader in idle:
            reader.end()
