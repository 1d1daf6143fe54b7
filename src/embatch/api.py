"""Runs from Python: `embatch.run`, `embatch.submit`, `embatch.get_run`, `embatch.list_runs`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from embatch.config import Settings
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.source import Source, open_source
from embatch.datasets.spool import spool_data
from embatch.environment import Environment
from embatch.errors import EmbatchError, InputError, InvalidRequestError, error_named
from embatch.execution.threads import ThreadExecutor
from embatch.journal.records import Failure, RunRecord
from embatch.run_options import RunOptions
from embatch.runs.accounts import set_cap
from embatch.runs.config import RunConfig
from embatch.runs.end import cancel_run, forget_run, retry_run, take_back
from embatch.runs.lookup import find_run
from embatch.runs.outputs import read_output, require_form
from embatch.runs.resolve import resolve_batch
from embatch.runs.start import start_run, wake_run
from embatch.runs.status import RunStatus, read_status
from embatch.storage.places import ObjectPlace, Place, absolute, remove_tree
from embatch.types.results import Matrix
from embatch.types.state import FINAL_RUN_STATES, RunState

PROGRESS_S = 0.5
"""Seconds between two calls of `on_progress`."""
STOPPED_STATES = FINAL_RUN_STATES | {RunState.NEEDS_PERSON, RunState.OVER_BUDGET}
"""States in which waiting in this process brings nothing more."""


class Run:
    """A run in the journal: look at it, wait for it, read what it wrote.

    The run is durable; this object is only a way to reach it. Close it, or use it in `with`.
    """

    def __init__(self, environment: Environment, run_id: str) -> None:
        self._environment = environment
        self.id = run_id

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the journal. The run itself is not touched."""
        self._environment.close()

    @property
    def out(self) -> str:
        """The output's path, as it was given, absolute."""
        return self._record().out

    def status(self) -> RunStatus:
        """How the run stands now."""
        return read_status(self._environment.journal, self.id, now=self._environment.now())

    def wait(
        self,
        timeout: float | None = None,
        *,
        on_progress: Callable[[RunStatus], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> RunStatus:
        """Works on the run in this process until it ends, beside other processes that do; a run
        for workers is only watched.

        `timeout` in seconds ends the waiting, never the run; `stop` is asked often and ends it
        too. `on_progress` is called with the status about twice a second and once at the end.
        """
        environment = self._environment
        next_report = time.monotonic()

        def over() -> bool:
            nonlocal next_report
            now = time.monotonic()
            if on_progress is not None and now >= next_report:
                next_report = now + PROGRESS_S
                on_progress(self._status_at_work())
            return (stop is not None and stop()) or self._record().state in STOPPED_STATES

        try:
            with environment.courier([self.id]) as courier:
                if self.by_workers:
                    from embatch.execution.handing import wait_until

                    wait_until(over, timeout_s=timeout)
                elif self._record().state not in STOPPED_STATES:
                    executor = ThreadExecutor(
                        environment.journal, environment.context, clock=environment.hooks.clock
                    )
                    executor.work([self.id], until=over, timeout_s=timeout)
                if self._record().state in STOPPED_STATES:
                    courier.linger(self.id)
        finally:
            environment.close_providers()
        status = self.status()
        if on_progress is not None:
            on_progress(status)
        return status

    def _status_at_work(self) -> RunStatus:
        world, here = self._environment, not self.by_workers
        return read_status(world.journal, self.id, now=world.now(), works_here=here)

    @property
    def by_workers(self) -> bool:
        """Workers take its steps: here it is only watched."""
        return self._record().config.get("execution") == "workers"

    def _hand_over(self) -> None:
        """Lets workers begin at once with a run that is theirs."""
        if self.by_workers:
            from embatch.execution.handing import hand_over

            world = self._environment
            hand_over(world.settings.journal, self._record(), now=world.now())

    def stage(self) -> None:
        """Reads the data through and stages it, so that the inputs are not needed any more. Workers
        do this for a run that is theirs, later: nothing is read here.

        Raises InputError for data that is broken; such a run is taken back, so that the mended
        data may have the same output.
        """
        environment = self._environment
        if self._record().state is RunState.PLANNING and not self.by_workers:
            ThreadExecutor(
                environment.journal,
                environment.context,
                threads=1,
                planning_only=True,
                clock=environment.hooks.clock,
            ).work([self.id], until=lambda: self._record().state is not RunState.PLANNING)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises the error that ended the run, if one did; broken data takes the run back."""
        status = self.status()
        if status.state is not RunState.FAILED:
            return
        error = error_named(status.error_code, f"run {status.id} failed: {status.error}")
        if isinstance(error, InputError):
            take_back(self._environment.journal, self.id)
        raise error

    def resume(
        self, *, max_cost_usd: float | None = None, notify: Sequence[str] | None = None
    ) -> "Run":
        """Sets a stopped run going again: `wait()` or a worker goes on with it.

        `max_cost_usd` is its cap from now on, `notify` who hears of it; None leaves them.
        """
        journal, now = self._environment.journal, self._environment.now()
        if notify is not None:
            config = {**self._record().config, "notify": [*self._environment.targets(notify)]}
            journal.update_run(self.id, now=now, config=config)
        if max_cost_usd is not None:
            set_cap(journal, self.id, max_cost_usd, now=now)
        wake_run(journal, self.id, now=now)
        self._hand_over()
        return self

    def cancel(self) -> RunStatus:
        """Stops the run for good reason of yours; what is written stays, `resume` goes on."""
        world, config = self._environment, RunConfig.from_json(self._record().config)
        cancel_run(world.journal, self.id, lambda: world.provider(config), now=world.now())
        world.close_providers()
        return self.status()

    def resolve(self, batch: int, *, adopt: str | None) -> None:
        """Decides about a batch whose job is in doubt, by its number, and sets the run going.

        Its job is the one called `adopt`, or, for None, is surely gone. InvalidRequestError when
        that job is not one of this batch, NotFoundError when the provider does not know it.
        """
        world = self._environment
        try:
            resolve_batch(world.context(self._record()), batch, adopt=adopt)
        finally:
            world.close_providers()
        self.resume()

    def retry(self) -> int:
        """Enters the failed rows once more, those whose text was kept. Gives how many."""
        world = self._environment
        rows = retry_run(world.journal, self.id, now=world.now(), checkpoint=world.hooks.checkpoint)
        self._hand_over()
        return rows

    def failures(self) -> Iterator[Failure]:
        """The rows that have no vector, in row order, each with its reason."""
        return self._environment.journal.failures(self.id)

    def read(self) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
        """What was written so far: rows (`key`, `row`, `text_sha256`, kept columns) and vectors.

        In blocks of `n` rows with a float32 matrix `[n, dims]`, in constant memory.
        """
        return read_output(OutputPaths.for_out(self._record().out))

    def forget(self) -> None:
        """Removes the run from the journal with the texts kept for `retry`; the output stays."""
        world, config = self._environment, RunConfig.from_json(self._record().config)
        forget_run(world.journal, self.id, lambda: world.provider(config))
        world.close_providers()

    def _record(self) -> RunRecord:
        return self._environment.journal.get_run(self.id)


def enter(data: Any, out: str | Path, **options: Unpack[RunOptions]) -> Run:
    """Enters a run in the journal without reading its data; whoever works on it plans it first.

    Takes and raises what `submit` does, but for what is wrong inside the data.
    """
    own, journal = options.pop("environment", None), options.pop("journal", None)
    world = own or Environment.open(journal=journal)
    name, tags, priority = (
        options.pop("name", None),
        options.pop("tags", None),
        options.pop("priority", None),
    )
    notify = options.pop("notify", None)
    try:
        if options.get("execution") == "workers":
            from embatch.execution.handing import require_postgres

            require_postgres(world.settings.journal)
        targets = world.targets(notify)
        paths = OutputPaths.for_out(str(out))
        if paths.manifest.exists():
            require_form(paths, Manifest.load(paths.manifest))
        source = _open_data(data, paths, options)
        config = replace(_config(source, paths, world.settings, options), notify=targets)
        run = start_run(
            world.journal,
            config,
            source,
            world.provider(config).space,
            now=world.now(),
            name=name,
            tags=tags,
            priority=priority,
            checkpoint=world.hooks.checkpoint,
        )
    except BaseException:
        _leave_no_trace(str(out))
        if own is None:
            world.close()
        raise
    handle = Run(world, run.id)
    handle._hand_over()  # noqa: SLF001 - its own module's
    return handle


def submit(data: Any, out: str | Path, **options: Unpack[RunOptions]) -> Run:
    """Stages the data durably, journals the run and returns; the same `out` gives the same run.

    `data` is a path or glob, a sequence of them as `Path`s, an iterable of texts or of
    `(key, text)`, an Arrow table or a DataFrame; what has no file is kept as one in the output.
    `RunOptions` tells the options.

    Raises InvalidRequestError for arguments or an output that do not fit, InputError for data
    that cannot be read, SpaceMismatchError when `out` holds vectors of another space.
    """
    handle = enter(data, out, **options)
    try:
        handle.stage()
    except BaseException:
        if options.get("environment") is None:
            handle.close()
        raise
    return handle


def run(
    data: Any,
    out: str | Path,
    *,
    timeout: float | None = None,
    on_progress: Callable[[RunStatus], None] | None = None,
    **options: Unpack[RunOptions],
) -> RunStatus:
    """Embeds `data` into `out` and returns when it is done; the same call again resumes.

    Takes what `submit` takes. Raises EmbatchError when the run fails; rows that fail are data:
    see `status.failed` and the output's failures.jsonl.
    """
    with enter(data, out, **options) as handle:
        status = handle.wait(timeout, on_progress=on_progress)
        handle.raise_failure()
    return status


def get_run(run_id: str | Path, *, journal: str | None = None) -> Run:
    """The run with this id, name or output, from any process that reaches the journal."""
    environment = Environment.open(journal=journal)
    try:
        return Run(environment, find_run(environment.journal, str(run_id)).id)
    except BaseException:
        environment.close()
        raise


def list_runs(
    *, tags: Mapping[str, str] | None = None, journal: str | None = None
) -> list[RunStatus]:
    """How every run stands, newest first; those alone that bear all `tags`."""
    with Environment.open(journal=journal) as environment:
        return [
            read_status(environment.journal, record.id, now=environment.now())
            for record in environment.journal.list_runs(tags=tags)
        ]


def _open_data(data: Any, paths: OutputPaths, options: RunOptions) -> Source:
    """The data as a source; takes the columns out of `options`."""
    spool = paths.work / "spool"
    return open_source(
        _inputs(data, spool),
        text=options.pop("text", None),
        key=options.pop("key", None),
        keep=options.pop("keep", ()),
        spool=spool,
    )


def _config(
    source: Source, paths: OutputPaths, settings: Settings, options: RunOptions
) -> RunConfig:
    """What the run is asked to do; takes what is left out of `options`."""
    reuse = options.pop("reuse", None)
    provider, model = options.pop("provider", None), options.pop("model", None)
    rest: dict[str, Any] = {**options}
    return RunConfig(
        inputs=tuple(str(file.path) for file in source.files),
        out=str(paths.out),
        provider=provider or settings.provider or "local",
        model=_model_name(model or settings.model),
        text=source.text_column,
        key=source.key_column,
        keep=source.keep_columns,
        reuse=None if reuse is None else absolute(reuse),
        **rest,
    )


def _leave_no_trace(out: str) -> None:
    """Removes what a refused call left of an output that was not there before."""
    with suppress(EmbatchError, OSError):  # the error of the call says more than that of this
        paths = OutputPaths.for_out(out)
        if paths.manifest.exists():
            return
        remove_tree(paths.work / "spool")
        for folder in (paths.work, paths.parts):
            if isinstance(folder, Path):
                folder.rmdir()  # refused where it holds other things


def _model_name(model: str | None) -> str | None:
    """A model folder's absolute path, so that a worker elsewhere finds it; a name as it is."""
    if model is not None and Path(model).is_dir():
        return str(Path(model).absolute())
    return model


def _inputs(data: Any, spool: Place) -> list[str]:
    if isinstance(data, (str, Path, ObjectPlace)):
        return [str(data)]
    if (
        isinstance(data, Sequence)
        and data
        and all(isinstance(item, (Path, ObjectPlace)) for item in data)
    ):
        return [str(item) for item in data]
    if isinstance(data, Sequence) and not data:
        raise InvalidRequestError("no data: the sequence is empty")
    return [str(spool_data(data, spool))]
