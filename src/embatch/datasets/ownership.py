"""Which journal works on an output: a lock that its processes share, and others cannot take."""

import fcntl
import time
from pathlib import Path
from typing import IO, Final

from embatch.errors import InvalidRequestError, StorageError
from embatch.storage.places import Place, scratch_of

LOCK_NAME: Final = ".lock"
_TRIES: Final = 10
_BETWEEN_TRIES_S: Final = 0.02
"""`is_held` has the lock for an instant: it is waited for, another holder is not."""


class OutputLock:
    """A file lock in an output's folder. Shared by workers, exclusive for a change of journal.

    An object store has no locks: for an output there it holds among this machine's processes, and
    what keeps other machines' journals away is the manifest, which names the one that it is of.
    """

    def __init__(self, folder: Place, *, exclusive: bool) -> None:
        """Takes the lock; InvalidRequestError while others hold it against this.

        A folder of this machine must be there.
        """
        here = scratch_of(folder)
        if not isinstance(folder, Path):
            here.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = (here / LOCK_NAME).open("ab")
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if left:
                    time.sleep(_BETWEEN_TRIES_S)
                    continue
                self.close()
                raise InvalidRequestError(
                    f"{folder} is worked on by another process with another journal: "
                    "wait for it, or name its journal with --journal"
                ) from error
            return

    def close(self) -> None:
        """Gives the lock back. Safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_lock(folder: Place) -> None:
    """Removes the lock's file."""
    (scratch_of(folder) / LOCK_NAME).unlink(missing_ok=True)


def is_held(folder: Place) -> bool | None:
    """Some process on this machine works on the output; None where no lock tells that.

    StorageError where the lock cannot be looked at.
    """
    if not isinstance(folder, Path):
        return None
    try:
        with (folder / LOCK_NAME).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{folder} cannot be looked at: {error.strerror or error}") from None
    return False
