"""A claimed batch in its run's world, with the words to journal what happens to it."""

from dataclasses import dataclass
from typing import Any

from embatch.datasets.stage import StageFile
from embatch.journal.records import BatchRecord
from embatch.runs.context import RunContext
from embatch.types.state import BatchEvent


@dataclass(frozen=True, slots=True)
class Step:
    """One step on one batch, under the lease `token`."""

    batch: BatchRecord
    token: str
    context: RunContext

    def move(self, event: BatchEvent, **facts: Any) -> "Step":
        """Journals `event` and its facts; gives the step on the batch as it stands now."""
        batch = self.context.journal.batches.transition(
            self.batch, self.token, event, now=self.context.now(), **facts
        )
        return Step(batch, self.token, self.context)

    def note(self, **facts: Any) -> None:
        """Journals facts that change no state."""
        self.context.journal.batches.note(self.batch, self.token, now=self.context.now(), **facts)

    def stage(self) -> StageFile:
        """The batch's frozen items."""
        return StageFile(self.context.paths.work / str(self.batch.stage))

    def label(self, attempt: int) -> str:
        """What the remote job of this attempt is called, and no other anywhere."""
        batch, journal_id = self.batch, self.context.journal.id
        nonce = self.context.chance.randbytes(4).hex()  # a forgotten run's numbers come again
        return f"embatch:{journal_id}:{batch.run_id}:{batch.number}:{attempt}:{nonce}"
