"""Which journal works on an output: a lock that its processes share, and others cannot take."""

import fcntl
from pathlib import Path
from typing import IO, Final

from embatch.errors import InvalidRequestError

LOCK_NAME: Final = ".lock"


class OutputLock:
    """A file lock in an output's folder. Shared by workers, exclusive for a change of journal."""

    def __init__(self, folder: Path, *, exclusive: bool) -> None:
        """Takes the lock at once; InvalidRequestError while others hold it against this."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = (folder / LOCK_NAME).open("ab")
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InvalidRequestError(
                f"{folder} is worked on by another process with another journal: "
                "wait for it, or name its journal with --journal"
            ) from error

    def close(self) -> None:
        """Gives the lock back. Safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
