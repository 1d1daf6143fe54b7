"""How a server is set up; the limits of the real service are the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embatch.config import Secret

MAX_INLINE_BYTES: Final = 20_000_000
MAX_ROW_BYTES: Final = 1 << 20
"""Size of one row of a batch: what is made into objects at a time stays small, whatever it is."""
MAX_FILE_BYTES: Final = 2 * 2**30
MAX_BATCHES: Final = 100
FILE_LIFETIME_S: Final = 48 * 3600.0
RESULT_LIFETIME_S: Final = 42 * 86400.0
"""Six weeks, for which the real service keeps results too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the operator decides."""

    folder: Path
    """Where batches and files are kept; one server at a time works on it."""
    api_key: Secret | None = None
    """What callers must show; None lets everyone in who can reach the port."""
    allowed_hosts: frozenset[str] = frozenset()
    """Names beside loopback that a server without a key answers to, in lower case."""
    max_inline_bytes: int = MAX_INLINE_BYTES
    """Size of the body that makes a batch at most, and of any other where less is not set."""
    max_file_bytes: int = MAX_FILE_BYTES
    """Size of an uploaded file at most."""
    max_batches: int = MAX_BATCHES
    """Unfinished batches at most."""
    file_lifetime_s: float = FILE_LIFETIME_S
    """Seconds for which an uploaded file is kept."""
    result_lifetime_s: float = RESULT_LIFETIME_S
    """Seconds for which a batch that has ended is kept."""
