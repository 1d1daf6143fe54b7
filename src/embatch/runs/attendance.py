"""Whether some process works on a run, told without waiting for a disk that does not answer."""

import threading
from dataclasses import dataclass
from typing import Final

from embatch.datasets.output import OutputPaths
from embatch.datasets.ownership import is_held
from embatch.errors import InvalidRequestError, StorageError
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.journal.workers import queue_of
from embatch.types.state import RunState

WORKING_STATES = (RunState.PLANNING, RunState.RUNNING, RunState.PARKED)
"""States in which a run wants a process."""
LOOK_S: Final = 1.0
"""So long an output may take to be looked at, in seconds, …"""
HASTY_LOOK_S: Final = 0.1
"""… and so long while another one hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """Who takes the steps of a run, at one moment."""

    worked: bool
    """Some process does, or the run needs none now."""
    unseen: str | None = None
    """Why its output cannot be looked at, so that the journal alone tells; else None."""


def attendance_of(journal: Journal, run: RunRecord, *, now: float) -> Attendance:
    """Told by the lock on the output where that is on this machine, else by the journal.

    A run for workers is worked while one is alive that takes its kind of jobs
    and can work it, as far as it knows.
    """
    if run.state not in WORKING_STATES:
        return Attendance(worked=True)
    if run.config.get("execution") == "workers":
        return Attendance(worked=journal.workers.serves(queue_of(run), run.id))
    held, unseen = _LOOKS.look(run.out)
    worked = journal.leases.is_worked(run.id, now=now) if held is None else held
    return Attendance(worked=worked, unseen=unseen)


class _Look:
    """One look at the lock of an output, in a thread that may hang with its disk."""

    def __init__(self, out: str) -> None:
        self._out = out
        self.held: bool | None = None
        self.unseen: str | None = None
        self.done = threading.Event()

    def __call__(self) -> None:
        try:
            self.held = is_held(OutputPaths.for_out(self._out).parts)
        except (InvalidRequestError, StorageError) as error:
            self.unseen = str(error)
        finally:
            self.done.set()


class _Looks:
    """The looks of this process: no output that hangs holds more than one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hanging: dict[str, _Look] = {}

    def look(self, out: str) -> tuple[bool | None, str | None]:
        """Some process here works on the output, None: unknown; and why it is unseen."""
        with self._lock:
            self._hanging = {
                name: one for name, one in self._hanging.items() if not one.done.is_set()
            }
            late, hasty = out in self._hanging, bool(self._hanging)
        if not late:
            look = _Look(out)
            threading.Thread(target=look, name="embatch-look", daemon=True).start()
            if look.done.wait(HASTY_LOOK_S if hasty else LOOK_S):
                return look.held, look.unseen
            with self._lock:
                self._hanging[out] = look
        return None, f"{out} cannot be looked at: its disk does not answer"


_LOOKS: Final = _Looks()
