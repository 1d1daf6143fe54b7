"""What an output is made of: written before any work, completed at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.datasets.durable import write_bytes_whole
from embatch.datasets.inputs import InputIdentity
from embatch.datasets.source import Source
from embatch.errors import (
    ChangedMeanwhileError,
    InputError,
    InvalidRequestError,
    NotFoundError,
    StorageError,
)
from embatch.storage.places import Place
from embatch.types.embedding import Space

FORMAT_VERSION: Final = 1
_TRIES: Final = 10
_VERSIONED: Final = ("embatch", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """One published part."""

    name: str
    rows: int
    sha256: str
    """Of the file's bytes, hex."""
    row_min: int
    row_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The identity of an output, and, once it is complete, its contents."""

    run_id: str
    space: Space
    text_column: str
    key_column: str | None
    keep_columns: tuple[str, ...]
    inputs: tuple[InputIdentity, ...]
    created_at: float
    """Seconds since 1970."""
    journal_id: str = ""
    """The journal that the run stands in."""
    reuse: str | None = None
    """The earlier output whose vectors were taken over."""
    form: str = ""
    """`OutputPaths.form` of the output; empty in manifests that do not say."""
    finished_at: float | None = None
    """Seconds since 1970; None while the run goes on."""
    counts: Mapping[str, int] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that wrote the output."""
    parts: tuple[PartEntry, ...] = ()
    """Empty while the run goes on."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def new(
        cls,
        *,
        run_id: str,
        space: Space,
        source: Source,
        created_at: float,
        journal_id: str = "",
        reuse: str | None = None,
        form: str = "",
    ) -> "Manifest":
        """The manifest of a run that begins."""
        return cls(
            run_id=run_id,
            space=space,
            text_column=source.text_column,
            key_column=source.key_column,
            keep_columns=source.keep_columns,
            inputs=source.identity,
            created_at=created_at,
            journal_id=journal_id,
            reuse=reuse,
            form=form,
            versions=_versions(),
        )

    def completed(
        self,
        *,
        finished_at: float,
        counts: Mapping[str, int],
        parts: Sequence[PartEntry],
        cost: Mapping[str, Any] | None = None,
    ) -> "Manifest":
        """The manifest of the same run at its end."""
        return replace(
            self,
            finished_at=finished_at,
            counts=dict(counts),
            cost=dict(cost or {}),
            parts=tuple(parts),
            versions=_versions(),
        )

    def difference(self, other: "Manifest") -> str | None:
        """What first makes `other` another run than this one, as a sentence part; None: nothing."""
        if (found := self.space.difference(other.space)) is not None:
            return found
        names = {
            "text_column": "the text column",
            "key_column": "the key column",
            "keep_columns": "the kept columns",
            "reuse": "the reused output",
        }
        for name, words in names.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{words}: {_shown(mine)} here and {_shown(theirs)} there"
        if len(self.inputs) != len(other.inputs):
            return f"{len(self.inputs)} inputs here and {len(other.inputs)} there"
        for number, (mine, theirs) in enumerate(zip(self.inputs, other.inputs, strict=True), 1):
            for name, value in mine.to_json().items():
                if value != (there := theirs.to_json()[name]):
                    what = f"input {number}" if name == "path" else f"{name} of {mine.path}"
                    return f"{what} is {value} here and {there} there"
        return None

    def to_bytes(self) -> bytes:
        """The manifest as its file holds it."""
        values = asdict(self)
        values["space"] = self.space.to_json()
        return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def save(self, path: Place) -> None:
        """Writes the manifest, whole or not at all."""
        write_bytes_whole(path, self.to_bytes())

    @classmethod
    def load(cls, path: Place) -> "Manifest":
        """The manifest in a file. `NotFoundError` without one, `InputError` when it is broken."""
        return cls._load(path)[0]

    @classmethod
    def _load(cls, path: Place) -> tuple["Manifest", str | None]:
        """The manifest, and in an object store its version."""
        try:
            data, version = (
                (path.read_bytes(), None) if isinstance(path, Path) else path.read_version()
            )
            values = orjson.loads(data)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path.parent} is no output: it holds no manifest") from error
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{path} is damaged: restore it, or use another output") from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise InvalidRequestError(
                f"{path} has format {found}, and this embatch knows {FORMAT_VERSION}: "
                "use the embatch that wrote it, or another output"
            )
        try:
            manifest = cls(
                **values
                | {
                    "space": Space.from_json(values["space"]),
                    "keep_columns": tuple(values["keep_columns"]),
                    "inputs": tuple(InputIdentity.from_json(one) for one in values["inputs"]),
                    "parts": tuple(PartEntry(**one) for one in values["parts"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: restore it, or use another output") from error
        return manifest, version

    @classmethod
    def change(cls, path: Place, changed: Callable[["Manifest"], "Manifest"]) -> None:
        """Writes what `changed` makes of the manifest that stands at `path`.

        In an object store nothing is lost that another process writes in this instant: `changed`
        is asked again then. What it raises leaves the manifest as it is.
        """
        for _ in range(_TRIES):
            manifest, version = cls._load(path)
            new = changed(manifest)
            if isinstance(path, Path):
                new.save(path)
                return
            try:
                path.write_bytes(new.to_bytes(), replacing=version)
            except ChangedMeanwhileError:
                continue
            return
        raise StorageError(f"{path} is written by others all the time: see who works on it")


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(value) or "none" if isinstance(value, tuple) else repr(value)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            found[name] = "unknown"
    return found
