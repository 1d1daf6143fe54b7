"""The worlds of the runs that a process works on, and what keeps it from working some of them."""

import logging
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embatch.datasets.output import OutputPaths
from embatch.errors import (
    AuthenticationError,
    ConfigError,
    EmbatchError,
    JournalError,
    PermissionDeniedError,
    StorageError,
)
from embatch.journal.records import RunRecord
from embatch.journal.workers import Trouble
from embatch.runs.config import RunConfig
from embatch.runs.context import RunContext

log = logging.getLogger("embatch.execution")

UNWORKABLE_S = 30.0
"""A run that this process cannot work is looked at again after so long, …"""
LONGEST_UNWORKABLE_S = 600.0
"""… and when that does not help, after twice as long each time, up to this."""
_OF_HOST: Final = (
    AuthenticationError,
    PermissionDeniedError,
    ConfigError,
    StorageError,
    OSError,
    ImportError,
    MemoryError,
)
"""What one machine may lack while others have it: keys and rights, packages, disk, mounts."""


def is_of_host(error: Exception) -> bool:
    """The error may say more of this machine than of the run."""
    return isinstance(error, _OF_HOST)


@dataclass(frozen=True, slots=True)
class _Hindrance:
    """Why a run is not worked here, and for how long, in seconds since 1970."""

    words: str
    wait_s: float
    until: float


class Contexts:
    """The worlds of the runs that a process works on, each opened once. Safe in threads."""

    def __init__(
        self,
        open_context: Callable[[RunRecord], RunContext],
        close_context: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._open = open_context
        self._close = close_context
        self._clock = clock
        self._contexts: dict[str, RunContext] = {}
        self._hindrances: dict[str, _Hindrance] = {}
        self._told: set[tuple[str, str]] = set()
        self._opening = threading.Lock()

    def of(self, run: RunRecord, *, alone: bool = False) -> RunContext | None:
        """The run's world; None if this process cannot work it, which says nothing of others.

        Raises instead when the run is asked for `alone`, by its name.
        """
        with self._opening:
            hindrance = self._hindrances.get(run.id)
            if hindrance is not None and hindrance.until > self._clock():
                return None
            context = self._contexts.get(run.id)
            if context is not None and context.config == RunConfig.from_json(run.config):
                return context
            try:
                context = self._contexts[run.id] = self._open(run)
            except JournalError:
                raise  # says nothing about the run
            except (EmbatchError, OSError, ImportError) as error:
                if alone:
                    raise
                self._hinder(run.id, error)
                return None
            return context

    def leave(self, run_id: str, error: Exception) -> None:
        """Leaves a run to others for a while, ever longer: this machine cannot work it."""
        with self._opening:
            self._hinder(run_id, error)

    def works(self, run_id: str) -> None:
        """A step of the run succeeded here: whatever hindered it is mended."""
        with self._opening:
            if self._hindrances.pop(run_id, None) is not None:
                log.warning("run %s can be worked on this machine again", run_id)

    def troubles(self) -> list[Trouble]:
        """The runs that are left to others, each with what is wrong here."""
        with self._opening:
            return [
                Trouble(run_id=run_id, what=one.words) for run_id, one in self._hindrances.items()
            ]

    def _hinder(self, run_id: str, error: Exception) -> None:
        now, words = self._clock(), str(error) or type(error).__name__
        before = self._hindrances.get(run_id)
        if before is not None and before.until > now:
            return  # another of its steps, begun before
        if (run_id, words) not in self._told:
            self._told.add((run_id, words))
            log.warning(
                "run %s is left to others, %s cannot work it: %s",
                *(run_id, socket.gethostname(), words),
            )
        wait_s = UNWORKABLE_S if before is None else min(LONGEST_UNWORKABLE_S, 2 * before.wait_s)
        self._hindrances[run_id] = _Hindrance(words, wait_s, now + wait_s)

    def let_go(self, kept: Collection[str]) -> None:
        """Closes the worlds of all runs but these."""
        with self._opening:
            for run_id in self._hindrances.keys() - kept:
                del self._hindrances[run_id]
            for run_id in self._contexts.keys() - kept:
                del self._contexts[run_id]
                self._close(run_id)


def require_standing(paths: OutputPaths) -> None:
    """Raises StorageError when a share that holds the output is not mounted here, or is away."""
    if isinstance(paths.manifest, Path) and not paths.manifest.exists():
        raise StorageError(
            f"{paths.parts} holds no manifest on {socket.gethostname()}: mount there what all "
            "machines share"
        )
