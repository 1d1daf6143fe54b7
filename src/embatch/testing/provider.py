"""A provider that does what a script says: for tests of how runs take a service's bad days."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from embatch.errors import NotFoundError
from embatch.providers.base import RemoteBatch, RemoteJob, RemoteStatus, StagedItems, wire_key
from embatch.testing.engine import FakeEngine
from embatch.types.batch import Limits
from embatch.types.embedding import Space
from embatch.types.results import BatchProgress, Embedded, Matrix, ResultBlock
from embatch.types.state import JobState

DEFAULT_LIMITS = Limits(
    max_batch_items=8,
    max_batch_tokens=10**9,
    max_batch_bytes=10**9,
    max_in_flight_batches=4,
    max_item_tokens=2048,
    poll_interval_s=1.0,
    settle_s=600.0,
    billed=True,
)


@dataclass(slots=True)
class Job:
    """A remote batch as the fake keeps it."""

    label: str
    texts: list[str]
    state: JobState = JobState.COMPLETED
    has_results: bool = True
    refused: bool = False
    quota: bool = False
    error: str | None = None
    hidden: bool = False
    """The list does not show it."""


@dataclass(slots=True)
class FakeProvider:
    """Jobs end at once, with the vectors of `FakeEngine`; each hook may interfere.

    `before_submit` and `after_submit` may raise, before or after the job took effect; `on_job`
    may change a job as it is made, `on_cancel` when it is asked to stop; `on_results` may change
    the blocks of its results, `on_embed` the vectors of an interactive call.
    """

    dims: int = 8
    model: str = "fake"
    """Name of the model; that of a known one gives it a price."""
    limits: Limits = DEFAULT_LIMITS
    before_submit: Callable[[str], None] = lambda _label: None
    after_submit: Callable[[str], None] = lambda _label: None
    before_find: Callable[[str], None] = lambda _label: None
    before_poll: Callable[[str], None] = lambda _name: None
    on_job: Callable[[Job], None] = lambda _job: None
    on_results: Callable[[Job, list[ResultBlock]], list[ResultBlock]] = lambda _job, blocks: blocks
    on_cancel: Callable[[Job], None] = lambda _job: None
    before_embed: Callable[[list[str]], None] = lambda _texts: None
    on_embed: Callable[[Matrix], Matrix] = lambda matrix: matrix
    jobs: dict[str, Job] = field(default_factory=dict)
    """By name, the discarded ones left out."""
    submitted: list[str] = field(default_factory=list)
    """Labels of every job that was ever made: what a bill would show."""
    cancelled: list[str] = field(default_factory=list)
    rows_bought: list[str] = field(default_factory=list)
    """Every text that was ever in a job."""
    _uploads: dict[str, list[str]] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        """The fake engine's space."""
        return Space(provider="fake", model=self.model, dims=self.dims)

    scope = "fake"
    """What shares one quota."""

    opener = None
    """Its jobs are in this process."""

    def upload(self, stage: StagedItems, label: str) -> str:
        """Keeps the texts under a reference of their own."""
        self._uploads[f"file-{label}"] = [
            text for batch in stage.read() for text in batch["text"].to_pylist()
        ]
        return f"file-{label}"

    def submit(self, input_ref: str, label: str, *, items: int, priority: int) -> RemoteBatch:
        """Makes the job, unless the script raises first. All priorities are alike here."""
        _ = priority
        self.before_submit(label)
        texts = self._uploads[input_ref]
        if len(texts) != items:
            raise NotFoundError(f"{input_ref} holds {len(texts)} items, not {items}")
        job = Job(label=label, texts=texts)
        self.on_job(job)
        name = f"jobs/{len(self.submitted)}"
        self.jobs[name] = job
        self.submitted.append(label)
        self.rows_bought += texts
        self.after_submit(label)
        return RemoteBatch(name=name, label=label)

    def find(self, label: str) -> RemoteBatch | None:
        """Looks through all jobs."""
        self.before_find(label)
        for name, job in self.jobs.items():
            if job.label == label and not job.hidden:
                return RemoteBatch(name=name, label=label)
        return None

    def listed(self) -> Iterator[RemoteJob]:
        """Every job that is not discarded."""
        self.before_find("")
        for name, job in list(self.jobs.items()):
            if job.hidden:
                continue
            yield RemoteJob(
                name=name,
                label=job.label,
                state=job.state,
                done=job.state not in (JobState.PENDING, JobState.PROCESSING),
                items=len(job.texts),
            )

    def poll(self, name: str) -> RemoteStatus:
        """The job as the script left it."""
        self.before_poll(name)
        job = self._job(name)
        return RemoteStatus(
            state=job.state,
            done=job.state not in (JobState.PENDING, JobState.PROCESSING),
            progress=BatchProgress(total=len(job.texts), succeeded=len(job.texts)),
            has_results=job.has_results and job.state is not JobState.PENDING,
            error=job.error,
            refused=job.refused,
            quota=job.quota,
            label=job.label,
        )

    def results(self, name: str) -> Iterator[ResultBlock]:
        """One block of true vectors, as the script changes it."""
        job = self._job(name)
        keys = [wire_key(job.label, index) for index in range(len(job.texts))]
        vectors = FakeEngine(dims=self.dims).expected(job.texts)
        yield from self.on_results(job, [ResultBlock(keys=keys, vectors=vectors)])

    def cancel(self, name: str) -> None:
        """Notes the wish, and has `on_cancel` change the job."""
        self.cancelled.append(name)
        self.on_cancel(self._job(name))

    def discard(self, name: str | None, input_ref: str | None) -> None:
        """Forgets the job and its input."""
        self.jobs.pop(name or "", None)
        self._uploads.pop(input_ref or "", None)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """True vectors, at once, as the script changes them."""
        _ = query
        self.before_embed(list(texts))
        found = FakeEngine(dims=self.dims).embed(texts)
        return replace(found, vectors=self.on_embed(found.vectors))

    def close(self) -> None:
        """Nothing to free."""

    def limited(self, **changes: float) -> "FakeProvider":
        """The same provider with other limits."""
        self.limits = replace(self.limits, **changes)  # type: ignore[arg-type]
        return self

    def _job(self, name: str) -> Job:
        if name not in self.jobs:
            raise NotFoundError(f"there is no job {name}")
        return self.jobs[name]
