"""What a process brings to its runs: settings, the journal, and the providers it has opened."""

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embatch.config import CloudSettings, Settings, load_settings, webhook_secret
from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.ownership import OutputLock
from embatch.errors import ConfigError, InvalidRequestError
from embatch.hooks import Hooks
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.observe.courier import Courier
from embatch.observe.targets import require_targets
from embatch.observe.webhook import parse_secrets
from embatch.providers.base import Provider
from embatch.providers.opening import open_provider
from embatch.runs.config import RunConfig
from embatch.runs.context import RunContext
from embatch.runs.heralds import open_courier
from embatch.runs.readers import Readers
from embatch.types.embedding import Space


@dataclass(frozen=True, slots=True)
class Environment:
    """The journal and the providers of one process. A context manager; `close` ends both."""

    settings: Settings
    journal: Journal
    hooks: Hooks = field(default_factory=Hooks)
    _providers: dict[tuple[Any, ...], Provider] = field(default_factory=dict)
    _locks: dict[str, OutputLock] = field(default_factory=dict)
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _readers: Readers = field(default_factory=Readers)

    @classmethod
    def open(
        cls,
        settings: Settings | None = None,
        *,
        journal: str | None = None,
        hooks: Hooks | None = None,
    ) -> "Environment":
        """Opens the journal that the settings, or `journal`, name."""
        settings, hooks = settings or load_settings(journal=journal), hooks or Hooks()
        opened = Journal.open(settings.journal)
        try:
            return cls(settings, opened, replace(hooks, clock=opened.clock(hooks.clock)))
        except BaseException:
            opened.close()
            raise

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now(self) -> float:
        """Seconds since 1970, by the clock that all who share the journal go by."""
        return self.hooks.clock()

    def provider(self, config: RunConfig) -> Provider:
        """The provider that a run asks for, opened once for all runs of the same space."""
        wanted = (
            *(config.provider, config.model, config.precision, config.dims, config.task_type),
            *(config.settle_s, config.staging),
        )
        _require_possible(config)
        with self._opening:
            if wanted not in self._providers:
                self._providers[wanted] = open_provider(
                    config.provider,
                    model=config.model,
                    precision=config.precision,
                    dims=config.dims,
                    task_type=config.task_type,
                    folder=self.settings.home / "service",
                    open_engine=self.hooks.open_engine,
                    checkpoint=self.hooks.checkpoint,
                    settle_s=config.settle_s,
                    staging=config.staging,
                )
            return self._providers[wanted]

    def service(self, name: str | None, *, staging: str | None = None) -> Provider:
        """A provider by its name, or by the settings, for no run: to see what lies there."""
        return self.provider(
            RunConfig(
                inputs=(),
                out="",
                provider=name or self.settings.provider or "local",
                model=self.settings.model if name is None else None,
                staging=staging,
            )
        )

    def context(self, run: RunRecord) -> RunContext:
        """The world of one run; its provider is opened. Refuses another space than the run's."""
        config = RunConfig.from_json(run.config)
        provider = self.provider(config)
        space = Space.from_json(dict(run.space))
        require_space(provider.space, space, run.id)
        self._hold(OutputPaths.for_out(config.out), run.id)
        return RunContext(
            journal=self.journal,
            run_id=run.id,
            config=config,
            space=space,
            paths=OutputPaths.for_out(config.out),
            provider=provider,
            clock=self.hooks.clock,
            checkpoint=self.hooks.checkpoint,
            readers=self._readers,
        )

    def _hold(self, paths: OutputPaths, run_id: str) -> None:
        """Marks the output as worked on by this journal, for as long as providers are open."""
        with self._opening:
            if run_id in self._locks:
                return
            if isinstance(paths.manifest, Path):
                Manifest.load(paths.manifest)  # no lock is made where there is no output
            lock = OutputLock(paths.parts, exclusive=False)
            if Manifest.load(paths.manifest).journal_id != self.journal.id:
                lock.close()
                raise InvalidRequestError(
                    f"{paths.out} belongs to another journal by now: name it with --journal"
                )
            self._locks[run_id] = lock

    def targets(self, urls: Iterable[str] | None) -> tuple[str, ...]:
        """Who is to hear of a run: `urls`, else the settings', each looked at."""
        secret = webhook_secret()
        if secret is not None:
            parse_secrets(secret.reveal())
        return require_targets(
            self.settings.notify if urls is None else urls, signs=secret is not None
        )

    def courier(self, run_ids: Collection[str] | None = None) -> Courier:
        """Delivers notifications beside this process's work on `run_ids`, or on every run."""
        secret = webhook_secret()
        return open_courier(
            self.journal,
            None if secret is None else secret.reveal(),
            clock=self.hooks.clock,
            run_ids=run_ids,
        )

    def release(self, run_id: str) -> None:
        """Lets go of a run's output: nothing in this process works on it any more."""
        with self._opening:
            if (lock := self._locks.pop(run_id, None)) is not None:
                lock.close()

    def close_providers(self) -> None:
        """Ends what the providers do in this process; the journal stays open."""
        self._readers.close()
        with self._opening:
            for provider in self._providers.values():
                provider.close()
            self._providers.clear()
            for lock in self._locks.values():
                lock.close()
            self._locks.clear()

    def close(self) -> None:
        """Closes the providers and the journal. Safe to call twice."""
        self.close_providers()
        self.journal.close()


def _require_possible(config: RunConfig) -> None:
    """Refuses what the provider named cannot do for a run."""
    if config.provider != "local" and config.too_long == "fail":
        raise InvalidRequestError(
            f"--too-long fail is for the local engine: {config.provider} cuts texts at its limit "
            "and does not say which; leave it out"
        )
    if config.provider != "vertex":
        return
    if config.staging is None and CloudSettings.from_environment().staging is None:
        raise ConfigError(
            "batches on Vertex AI go through Cloud Storage: give --staging gs://bucket/prefix "
            "(staging=), or set EMBATCH_STAGING"
        )


def require_space(here: Space, there: Space, what: str) -> None:
    """Raises SpaceMismatchError unless the provider's space is that of the vectors at hand."""
    from embatch.errors import SpaceMismatchError

    if (difference := here.difference(there)) is not None:
        raise SpaceMismatchError(
            f"{what} cannot go on with this provider: {difference} (there is the run's own)"
        )
