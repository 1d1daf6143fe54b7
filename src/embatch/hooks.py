"""What tests put in place of the real thing. Imports nothing heavy: a command starts with it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embatch.types.results import TextEngine


def no_checkpoint(_name: str) -> None:
    """The checkpoint of production: nothing happens. Tests put a kill -9 here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a process does otherwise in a test."""

    clock: Callable[[], float] = time.time
    """Seconds since 1970."""
    checkpoint: Callable[[str], None] = no_checkpoint
    """Called with a name at every point where a crash must do no harm."""
    open_engine: "Callable[..., TextEngine] | None" = None
    """`open_engine(model, precision=…)` in place of the local engine."""
