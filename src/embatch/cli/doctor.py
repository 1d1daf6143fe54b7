"""Looks at everything that embatch needs on a machine, one thing after the other."""

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from embatch import __version__
from embatch.cli import figures
from embatch.cli.quote import free_bytes
from embatch.errors import EmbatchError

if TYPE_CHECKING:
    from embatch.environment import Hooks

ENGINE_LIBRARIES = ("openvino", "tokenizers")
GOOD_CAPABILITIES = ("FP32", "BF16", "FP16", "INT8")
FREE_BYTES = 1_000_000_000
"""Under so much free space a run is likely to stop: a million vectors of 384 dims take 1.5 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    detail: str
    """What was found, or what to do."""


def examine(
    *,
    journal: str | None,
    provider: str | None,
    model: str | None,
    precision: str,
    hooks: "Hooks | None",
) -> list[Finding]:
    """The findings in the order in which a run would meet them. A later one may need an earlier."""
    from embatch.config import load_settings

    settings = load_settings(journal=journal)
    name = provider or settings.provider or "local"
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()}, embatch {__version__}"),
        ("engine", _look_at_engine),
        ("processor", _look_at_processor),
        (
            "model",
            lambda: _embed_once(
                name, model or settings.model, precision, settings.home / "service", hooks
            ),
        ),
        ("journal", lambda: _look_at_journal(settings.journal)),
        ("disk", lambda: _look_at_disk(settings.home)),
    ]
    return [finding for what, look in checks for finding in _found(what, look)]


def _found(what: str, look: Callable[[], str]) -> Iterator[Finding]:
    try:
        yield Finding(what=what, well=True, detail=look())
    except (EmbatchError, OSError) as error:
        yield Finding(what=what, well=False, detail=" ".join(str(error).split()))


def _look_at_engine() -> str:
    from embatch.errors import ConfigError

    found = []
    for library in ENGINE_LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            raise ConfigError(f"{library} is not installed: pip install 'embatch[local]'") from None
    return ", ".join(found)


def _look_at_processor() -> str:
    from embatch.errors import ConfigError

    try:
        from embatch.local.precision import capabilities, cores, resolve_precision
    except ImportError as error:
        raise ConfigError(
            f"the engine cannot be loaded ({error}): pip install 'embatch[local]'"
        ) from error
    able = [name for name in GOOD_CAPABILITIES if name in capabilities()]
    return (
        f"{figures.counted(cores(), 'core')}, {' '.join(able)}; "
        f"precision auto means {resolve_precision('auto').value}"
    )


def _embed_once(
    name: str, model: str | None, precision: str, folder: Path, hooks: "Hooks | None"
) -> str:
    import numpy as np

    from embatch.environment import Hooks
    from embatch.providers.opening import open_provider

    hooks = hooks or Hooks()
    start = time.perf_counter()
    provider = open_provider(
        name,
        model=model,
        precision=precision,
        dims=None,
        task_type=None,
        folder=folder,
        open_engine=hooks.open_engine,
        checkpoint=hooks.checkpoint,
    )
    try:
        space = provider.space
        vector = provider.embed(["Is everything well?"]).vectors[0]
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or abs(norm - 1.0) > 0.01:
            raise EmbatchError(
                f"{space.model} gave a vector of length {norm:.3f}: try --precision f32"
            )
    finally:
        provider.close()
    took = figures.duration(time.perf_counter() - start)
    parts = [space.provider, space.model, space.precision or ""]
    return (
        f"{' '.join(part for part in parts if part)}: {space.dims} dims, "
        f"a vector of length {norm:.3f} in {took}"
    )


def _look_at_journal(url: str) -> str:
    from embatch.journal.store import Journal

    journal = Journal.open(url)
    try:
        return f"{url}, {figures.counted(len(journal.list_runs()), 'run')}"
    finally:
        journal.close()


def _look_at_disk(home: Path) -> str:
    free = free_bytes(home)
    if free < FREE_BYTES:
        raise EmbatchError(
            f"{figures.size(free)} free in {home}: free some space, "
            "or set EMBATCH_HOME to a larger disk"
        )
    return f"{figures.size(free)} free in {home}"
