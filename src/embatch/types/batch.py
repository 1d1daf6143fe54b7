"""Items, the limits that cut them into batches, and batches as a service tells them."""

from dataclasses import dataclass, field
from datetime import datetime

from embatch.types.state import TERMINAL_JOB_STATES, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One input row."""

    key: str
    """The user's key; the row number where no key column was named."""
    text: str
    """The text as it was read, unchanged."""
    row: int
    """Row number from 0 over all inputs in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold and how many may be under way, for one provider and model."""

    max_batch_items: int
    max_batch_tokens: int
    """Estimated tokens, all items together."""
    max_batch_bytes: int
    """UTF-8 bytes of text, all items together."""
    max_in_flight_batches: int
    max_item_tokens: int
    """Longer texts are cut by the model; see `--too-long`."""
    poll_interval_s: float | None = None
    """Fixed seconds between polls; None adapts to the batch's size (spec.md section 5)."""
    settle_s: float = 600.0
    """How long after an ambiguous submit a batch may still turn up before it is held absent."""
    results_kept_s: float | None = None
    """How long results can be read after a job's end; None: until they are removed."""
    billed: bool = True
    """Embedding costs money here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedContentBatchStats:
    """How many rows of a batch are where. Counts the service leaves out are 0."""

    request_count: int = 0
    successful_request_count: int = 0
    failed_request_count: int = 0
    pending_request_count: int = 0

    @property
    def finished_count(self) -> int:
        """Rows that succeeded or failed."""
        return self.successful_request_count + self.failed_request_count

    @property
    def progress_percentage(self) -> float:
        """Finished rows out of all, 0.0 to 100.0; 0.0 when nothing was asked for."""
        return _percentage(self.finished_count, self.request_count)

    @property
    def success_rate(self) -> float:
        """Successful rows out of the finished ones, 0.0 to 100.0; 0.0 when none finished."""
        return _percentage(self.successful_request_count, self.finished_count)

    @property
    def failure_rate(self) -> float:
        """Failed rows out of the finished ones, 0.0 to 100.0; 0.0 when none finished."""
        return _percentage(self.failed_request_count, self.finished_count)

    @property
    def is_complete(self) -> bool:
        """Every row asked for has finished."""
        return self.request_count > 0 and self.finished_count >= self.request_count


def _percentage(part: int, whole: int) -> float:
    return min(part / whole * 100.0, 100.0) if whole > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """Where a batch's rows came from."""

    file: str | None = None
    """`files/…`, or the first `gs://…` object; None for rows sent in the call itself."""

    @property
    def inline(self) -> bool:
        """The rows were sent in the call itself."""
        return self.file is None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutput:
    """Where a batch's results are."""

    file: str | None = None
    """`files/batch-…` on the Gemini API."""
    directory: str | None = None
    """`gs://…` folder on Vertex AI."""
    inlined: bool = False
    """The results are in the batch's own document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Why a batch ended badly."""

    code: str
    """Short and stable: "resource_exhausted", "internal", …"""
    message: str
    """One sentence, without users' texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedContentBatch:
    """One asynchronous batch as the service tells it."""

    name: str
    """`batches/{id}`; on Vertex AI the job's full name. All that another process needs."""
    display_name: str
    """The name its maker gave it."""
    label: str
    """The display name as it stands at the service, unique to this batch when embatch made it."""
    model: str
    """Bare name of the model."""
    state: JobState | str
    """A word that embatch does not know is kept, in lower case, and is not terminal."""
    done: bool = False
    """The service says that the batch has ended, whatever its state is called."""
    batch_stats: EmbedContentBatchStats = EmbedContentBatchStats()
    priority: int = 0
    """Higher is more urgent."""
    create_time: datetime | None = None
    update_time: datetime | None = None
    end_time: datetime | None = None
    input_config: BatchInput = BatchInput()
    output: BatchOutput | None = None
    """None until there are results."""
    error: BatchError | None = None
    keys: tuple[str, ...] | None = field(default=None, repr=False)
    """The keys given to the submission, in this process only: they never leave it."""

    @property
    def is_terminal(self) -> bool:
        """The batch has ended and will not change any more."""
        return self.done or self.state in TERMINAL_JOB_STATES

    @property
    def has_results(self) -> bool:
        """Results can be read now; a failed or cancelled batch may have some too."""
        return self.is_terminal and self.output is not None
