"""What a step may use: everything it touches comes in here, so that a run replays in a test."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from embatch.datasets.output import OutputPaths
from embatch.hooks import no_checkpoint
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.providers.base import Provider
from embatch.runs.config import RunConfig
from embatch.runs.readers import Readers
from embatch.types.embedding import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """One run's world."""

    journal: Journal
    run_id: str
    config: RunConfig
    space: Space
    paths: OutputPaths
    provider: Provider
    clock: Callable[[], float] = time.time
    """Seconds since 1970; leases alone use the database's clock."""
    chance: random.Random = field(default_factory=random.Random)
    checkpoint: Callable[[str], None] = no_checkpoint
    readers: Readers | None = None
    """Processes that read results beside this one."""

    def now(self) -> float:
        """Seconds since 1970."""
        return self.clock()

    @property
    def keeps_remote(self) -> bool:
        """Inputs and finished batches stay at the provider."""
        return self.config.keep_remote and self.provider.limits.billed

    def run(self) -> RunRecord:
        """The run as the journal has it now."""
        return self.journal.get_run(self.run_id)
