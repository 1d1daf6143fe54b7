"""Looks at everything that embatch needs on a machine, one thing after the other."""

import platform
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from embatch import __version__
from embatch.cli import figures
from embatch.cli.quote import free_bytes
from embatch.errors import ConfigError, EmbatchError, InvalidRequestError

if TYPE_CHECKING:
    from embatch.hooks import Hooks
    from embatch.providers.checkup import Look

_PASSWORD = re.compile(r"://([^/@:]*):[^/@]*@")
ENGINE_LIBRARIES = ("openvino", "tokenizers")
GOOD_CAPABILITIES = ("FP32", "BF16", "FP16", "INT8")
FREE_BYTES = 1_000_000_000
"""Under so much free space a run is likely to stop: a million vectors of 384 dims take 1.5 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool | None
    """None: it was not looked at, because what it needs is amiss."""
    detail: str
    """What was found, or what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What is to be examined."""

    provider: str | None
    model: str | None
    dims: int | None
    staging: str | None
    precision: str
    journal: str | None
    notify: Sequence[str] = ()
    """Targets that are sent a test."""


def examine(wanted: Examined, hooks: "Hooks | None") -> list[Finding]:
    """The findings in the order in which a run would meet them.

    InvalidRequestError for a provider that does not exist.
    """
    from embatch.config import load_settings
    from embatch.providers.checkup import Look

    settings = load_settings(journal=wanted.journal)
    name = wanted.provider or settings.provider or "local"
    with ExitStack() as stack:
        looks = [
            Look(what="python", take=lambda: f"{platform.python_version()}, embatch {__version__}"),
            *_looks_at(name, wanted, settings.model, settings.home, hooks, stack),
            Look(what="journal", take=lambda: _look_at_journal(settings.journal)),
            Look(what="disk", take=lambda: _look_at_disk(settings.home, Path.cwd())),
            *_looks_at_targets(wanted.notify),
        ]
        return take_looks(looks)


def take_looks(looks: "Sequence[Look]") -> list[Finding]:
    """Takes the looks one by one; one that needs what is amiss is not taken."""
    findings: dict[str, Finding] = {}
    for look in looks:
        need = findings.get(look.needs or "")
        if need is not None and not need.well:
            found = Finding(
                what=look.what, well=None, detail=f"not looked at: mend {need.what} first"
            )
        else:
            found = _taken(look)
        findings[look.what] = found
    return list(findings.values())


def _taken(look: "Look") -> Finding:
    try:
        return Finding(what=look.what, well=True, detail=look.take())
    except (EmbatchError, OSError) as error:
        return Finding(what=look.what, well=False, detail=" ".join(str(error).split()))


def _looks_at(
    name: str,
    wanted: Examined,
    usual_model: str | None,
    home: Path,
    hooks: "Hooks | None",
    stack: ExitStack,
) -> "Sequence[Look]":
    """What a provider alone needs. What is opened is closed by `stack`."""
    from embatch.client.open import Auth
    from embatch.hooks import Hooks
    from embatch.providers.checkup import CloudCheckup, Look
    from embatch.providers.opening import PROVIDERS

    hooks, model = hooks or Hooks(), wanted.model or usual_model
    if name not in PROVIDERS:
        raise InvalidRequestError(f"no provider {name!r}: use one of {', '.join(PROVIDERS)}")
    if name == "local":
        return [
            Look(what="engine", take=_look_at_engine),
            Look(what="processor", take=_look_at_processor),
            Look(what="model", take=lambda: _embed_once(wanted, model, home / "service", hooks)),
        ]
    checkup = CloudCheckup(
        Auth.GEMINI if name == "gemini" else Auth.VERTEX_AI,
        model=model,
        dims=wanted.dims,
        staging=wanted.staging,
        clock=hooks.clock,
    )
    stack.callback(checkup.close)
    return checkup.looks()


def _look_at_engine() -> str:
    found = []
    for library in ENGINE_LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            raise ConfigError(f"{library} is not installed: pip install 'embatch[local]'") from None
    return ", ".join(found)


def _look_at_processor() -> str:
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


def _embed_once(wanted: Examined, model: str | None, folder: Path, hooks: "Hooks") -> str:
    import numpy as np

    from embatch.providers.opening import open_provider

    start = time.perf_counter()
    provider = open_provider(
        "local",
        model=model,
        precision=wanted.precision,
        dims=wanted.dims,
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
        shown = _PASSWORD.sub(r"://\1:…@", url)
        return f"{shown}, {figures.counted(len(journal.list_runs()), 'run')}"
    finally:
        journal.close()


def _look_at_disk(*places: Path) -> str:
    """Free space where the journal is, and where outputs go when nothing else is said."""
    found = []
    for place in dict.fromkeys(places):
        free = free_bytes(place)
        if free < FREE_BYTES:
            raise EmbatchError(
                f"{figures.size(free)} free in {place}: free some space, work elsewhere, "
                "or set EMBATCH_HOME to a larger disk"
            )
        found.append(f"{figures.size(free)} free in {place}")
    return ", ".join(found)


def _looks_at_targets(urls: Sequence[str]) -> "Sequence[Look]":
    """A test message to each target of notifications."""
    from embatch.providers.checkup import Look

    return [
        Look(what="notify" if len(urls) == 1 else f"notify {n}", take=partial(_send_test, url))
        for n, url in enumerate(urls, 1)
    ]


def _send_test(url: str) -> str:
    from embatch.config import webhook_secret
    from embatch.observe.targets import require_targets, shown
    from embatch.runs.heralds import send_once

    secret = webhook_secret()
    (target,) = require_targets([url], signs=secret is not None)
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    attempt = send_once(
        target,
        None if secret is None else secret.reveal(),
        f"msg_{secrets.token_hex(12)}",
        {"type": "test", "timestamp": at, "data": {}},
        clock=time.time,
    )
    if not attempt.delivered:
        raise EmbatchError(f"a test did not arrive at {shown(target)}: {attempt.error}")
    return f"a test arrived at {shown(target)}"
