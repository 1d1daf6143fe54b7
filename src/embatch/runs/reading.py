"""Reads a batch's results and joins them to its items; and a process that does nothing else.

Parsing JSON holds Python's lock, so that only processes read on several cores. `runs.readers`
starts them and gives them tasks through a socket.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from embatch.errors import EmbatchError
from embatch.providers.base import OpenProvider, Provider
from embatch.runs.gathered import LET_GO_BYTES, let_go, map_vectors
from embatch.runs.verify import Join, Joined
from embatch.types.embedding import Space
from embatch.types.results import Matrix

IDLE_S: Final = 60.0
"""A process without a task for so long ends by itself: batches may take a day."""
READY: Final = "ready"
"""What a process says first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Which results to read, and what they must match."""

    remote_name: str
    label: str
    items: int
    space: Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a reading process is sent."""

    provider: int
    """Tells providers apart: each is opened once."""
    opener: OpenProvider
    results: Results
    path: Path | None
    """The file that takes the vectors; None: they follow the answer as bytes."""


Answer = Joined | EmbatchError
"""What it sends back, without the vectors."""


def join_results(
    provider: Provider, results: Results, into: Matrix, check: Callable[[], None]
) -> Joined:
    """Joins the results of a batch, in constant memory but for `into`.

    `check` is called between blocks, and may raise to end the reading. Raises what the provider
    raises, and AlignmentError.
    """
    join = Join(label=results.label, items=results.items, space=results.space, into=into)
    written = 0
    for block in provider.results(results.remote_name):
        check()
        join.add(block)
        written += block.vectors.nbytes
        if written >= LET_GO_BYTES:
            let_go(into)
            written = 0
    let_go(into)
    return join.finish()


class _Desk:
    """Does one task after the other, with one provider open at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._number = -1
        self._provider: Provider | None = None
        self._room: Matrix = np.empty(0, dtype=np.float32)
        """Takes vectors that are sent: the same memory for every task."""

    def do(self, task: Task) -> None:
        """Reads and sends what came of it."""
        try:
            into = self._vectors(task)
            joined = join_results(self._opened(task), task.results, into, _no_check)
        except EmbatchError as error:
            self._connection.send(error)
        except Exception as error:  # noqa: BLE001 - the process's outer edge: the run records it
            # Where, not what: the message of a foreign error may hold a user's text.
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"unexpected {type(error).__name__} at {place.name}:{place.lineno}"
            self._connection.send(EmbatchError(f"results could not be read: {what}"))
        else:
            self._connection.send(replace(joined, vectors=into[:0]))
            if task.path is None:
                send_vectors(self._connection, into)

    def _vectors(self, task: Task) -> Matrix:
        items, dims = task.results.items, task.results.space.dims
        if task.path is not None:
            return map_vectors(task.path, items, dims)
        if self._room.size < items * dims:
            self._room = np.empty(items * dims, dtype=np.float32)
        return self._room[: items * dims].reshape(items, dims)

    def _opened(self, task: Task) -> Provider:
        if self._provider is None or task.provider != self._number:
            if self._provider is not None:
                self._provider.close()
            self._provider, self._number = task.opener(), task.provider
        return self._provider


def _no_check() -> None:
    """The process that gave the task holds the lease, and ends this one when it is lost."""


def send_vectors(connection: Connection, vectors: Matrix) -> None:
    """Sends a matrix as bare bytes, for `receive_vectors` at the other end."""
    left = vectors.data.cast("B")
    while left:
        left = left[os.write(connection.fileno(), left) :]


def receive_vectors(connection: Connection, into: Matrix) -> None:
    """Fills a matrix with the bytes that come; EOFError when they end early."""
    left = into.data.cast("B")
    while left:
        size = os.readv(connection.fileno(), [left])
        if not size:
            raise EOFError
        left = left[size:]


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main(descriptor: int) -> None:
    """Takes tasks from a socket until it closes, its other end dies, or none comes for long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its steps
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Connection(descriptor) as connection:
        desk = _Desk(connection)
        connection.send(READY)
        while connection.poll(IDLE_S):
            try:
                task: Task = connection.recv()
            except EOFError:
                return
            desk.do(task)
