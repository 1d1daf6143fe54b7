"""A claimed batch in its run's world, with the words to journal what happens to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from embatch.datasets.stage import StageFile
from embatch.errors import LeaseLostError
from embatch.journal.records import BatchRecord
from embatch.runs.context import RunContext
from embatch.types.state import BatchEvent


@dataclass(frozen=True, slots=True)
class Step:
    """One step on one batch, under the lease `token`."""

    batch: BatchRecord
    token: str
    context: RunContext
    is_held: Callable[[], bool]
    """The lease is ours, as far as this process knows."""

    def move(self, event: BatchEvent, **facts: Any) -> "Step":
        """Journals `event` and its facts; gives the step on the batch as it stands now."""
        provider = self.context.provider
        batch = self.context.journal.batches.transition(
            self.batch,
            self.token,
            event,
            now=self.context.now(),
            scope=provider.scope if provider.limits.billed else None,
            **facts,
        )
        return replace(self, batch=batch)

    def note(self, **facts: Any) -> None:
        """Journals facts that change no state."""
        self.context.journal.batches.note(self.batch, self.token, now=self.context.now(), **facts)

    def check_lease(self) -> None:
        """Raises LeaseLostError when another process has the batch by now: long work ends here."""
        if not self.is_held():
            raise LeaseLostError(f"batch {self.batch.number} was taken over by another process")

    def stage(self) -> StageFile:
        """The batch's frozen items."""
        return StageFile(self.context.paths.work / str(self.batch.stage))

    def label(self, attempt: int) -> str:
        """What the remote job of this attempt is called, and no other anywhere."""
        batch, journal_id = self.batch, self.context.journal.id
        nonce = self.context.chance.randbytes(4).hex()  # a forgotten run's numbers come again
        return f"embatch:{journal_id}:{batch.run_id}:{batch.number}:{attempt}:{nonce}"
