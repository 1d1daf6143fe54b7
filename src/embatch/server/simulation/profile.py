"""What `--simulate` asks for: presets by name and files of faults, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.errors import ConfigError, EmbatchError
from embatch.server.simulation.presets import PRESETS
from embatch.testing.cloud.faults import FAULTS, Fault, FaultKind

UNSUPPORTED: Final = frozenset({FaultKind.JOB_PARTIAL, FaultKind.OUTPUT_SHARDS})
"""Kinds of Vertex AI alone, which this server does not speak."""

_NUMBER: Final = (int, float)
_TYPES_OF_NONE: Final[Mapping[str, Any]] = {
    "count": int, "fraction": _NUMBER, "indices": list, "marker": str, "chance": _NUMBER,
    "every_bytes": int, "seconds": _NUMBER, "retry_after_s": _NUMBER, "dims": int,
}  # fmt: skip
"""Types of the arguments that are None by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The faults of a day, and the seed that all chance is drawn from."""

    names: Sequence[str]
    """As they were asked for."""
    faults: Sequence[Fault]
    """Each with an id of its own."""
    seed: int


def parse_profile(words: Sequence[str], seed: int | None) -> Profile:
    """The profile of some `--simulate` options: presets or files, commas between them.

    `seed` wins over those of files. Raises `ConfigError`.
    """
    names = list(dict.fromkeys(name.strip() for word in words for name in word.split(",")))
    faults: dict[str, Fault] = {}
    found = 0
    for name in names:
        if name in PRESETS:
            listed: Sequence[Fault] = PRESETS[name].faults
            label = name
        elif name.endswith(".json") or Path(name).is_file():
            listed, own = _read(Path(name))
            found = found if own is None else own
            label = Path(name).stem
        else:
            raise ConfigError(
                f"--simulate {name!r} is no preset and no file. The presets are: "
                f"{', '.join(PRESETS)}. `embatch serve --simulate list` tells what they do."
            )
        for number, fault in enumerate(listed, 1):
            named = fault if fault.id else replace(fault, id=f"{label}-{number}")
            if named.id in faults:
                raise ConfigError(f"--simulate {name}: the id {named.id!r} stands twice")
            faults[named.id] = named
    chosen = found if seed is None else seed
    if chosen < 0:
        raise ConfigError(f"--seed {chosen}: a number from 0 is required")
    return Profile(names=names, faults=list(faults.values()), seed=chosen)


def _read(path: Path) -> tuple[list[Fault], int | None]:
    """Faults and seed of a JSON file: a list of faults, or {"seed": …, "faults": […]}."""
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--simulate {path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--simulate {path}: no JSON ({error})") from None
    seed = None
    if isinstance(value, dict):
        unknown = value.keys() - {"seed", "faults"}
        if unknown:
            raise ConfigError(f"--simulate {path}: there is no {', '.join(sorted(unknown))}")
        seed, value = value.get("seed"), value.get("faults")
        if seed is not None and not _is(seed, int):
            raise ConfigError(f"--simulate {path}: seed must be a whole number")
    if not isinstance(value, list):
        raise ConfigError(f"--simulate {path}: a list of faults is required")
    faults = []
    for number, values in enumerate(value, 1):
        try:
            faults.append(parse_fault(values))
        except ConfigError as error:
            raise ConfigError(f"--simulate {path}, fault {number}: {error}") from None
    return faults, seed


def parse_fault(values: Any) -> Fault:
    """A fault from plain values, whose types are checked. Raises `ConfigError`."""
    if not isinstance(values, dict):
        raise ConfigError("an object is required")
    names = [field.name for field in fields(Fault)]
    unknown = values.keys() - set(names)
    if unknown or "kind" not in values:
        raise ConfigError(f"kind is required, and nothing but {', '.join(names)} is known")
    kind = values["kind"]
    if kind not in list(FaultKind):
        raise ConfigError(f"there is no kind {kind!r}; the kinds are {', '.join(FaultKind)}")
    if kind in UNSUPPORTED:
        raise ConfigError(f"{kind} is a fault of Vertex AI, which this server does not speak")
    _check_fields(values)
    try:
        fault = Fault(**values)
    except EmbatchError as error:
        raise ConfigError(str(error)) from None
    defaults = FAULTS[FaultKind(kind)].args
    for name, given in fault.args.items():
        _check_arg(name, given, defaults[name])
    return fault


def _check_fields(values: Mapping[str, Any]) -> None:
    times, after = values.get("times"), values.get("after", 0)
    probability = values.get("probability", 1.0)
    if not (times is None or (_is(times, int) and times >= 1)):
        raise ConfigError("times must be a whole number from 1, or null")
    if not (_is(after, int) and after >= 0):
        raise ConfigError("after must be a whole number from 0")
    if not (_is(probability, _NUMBER) and 0 <= probability <= 1):
        raise ConfigError("probability must be a number from 0 to 1")
    if not isinstance(values.get("id", ""), str):
        raise ConfigError("id must be a string")
    for name in ("match", "args"):
        if not isinstance(values.get(name, {}), dict):
            raise ConfigError(f"{name} must be an object")


def _check_arg(name: str, given: Any, default: Any) -> None:
    if given is None and (default is None or name == "message"):
        return
    wanted = _TYPES_OF_NONE[name] if default is None else type(default)
    if wanted is float:
        wanted = _NUMBER
    if not _is(given, wanted):
        raise ConfigError(f"argument {name} must be {_spoken(wanted)}, not {given!r}")
    if name in _WORDS and given not in _WORDS[name]:
        raise ConfigError(f"argument {name} must be one of {', '.join(_WORDS[name])}")
    if _is(given, _NUMBER) and given < 0:
        raise ConfigError(f"argument {name} must not be negative")
    if name == "code" and default is not None and default >= 100 and given not in _SERVER_ERRORS:
        raise ConfigError("argument code must be 500, 502, 503 or 504")
    if name == "every_bytes" and given < 1:
        raise ConfigError("argument every_bytes must be 1 or more")


_WORDS: Final[Mapping[str, Sequence[str]]] = {
    "hints": ("none", "minute", "day", "misleading"),
    "shape": ("null", "empty", "absent", "no_response"),
    "state": ("PENDING", "RUNNING"),
    "place": ("metadata", "response"),
    "when": ("end", "running"),
}
_SERVER_ERRORS: Final = (500, 502, 503, 504)


def _is(value: Any, wanted: Any) -> bool:
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _spoken(wanted: Any) -> str:
    words = {int: "a whole number", str: "a string", bool: "true or false", list: "a list"}
    return "a number" if wanted == _NUMBER else words[wanted]
