"""Which files an input means, what they are, and whether they are still the same."""

import fnmatch
import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from embatch.datasets.durable import file_sha256
from embatch.errors import InputError, InvalidRequestError
from embatch.storage.places import ObjectPlace, Place, local_copy
from embatch.storage.urls import parse_url


class Format(StrEnum):
    """How a file holds its rows."""

    PARQUET = "parquet"
    ARROW = "arrow"
    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    TXT = "txt"


_FORMATS: Final = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".arrows": Format.ARROW,
    ".feather": Format.ARROW,
    ".ipc": Format.ARROW,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".txt": Format.TXT,
}
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
_COMPRESSIBLE: Final = frozenset({Format.CSV, Format.TSV, Format.JSONL, Format.TXT})
FORMATS_TEXT: Final = (
    ".parquet, .arrow, .feather, .csv, .tsv, .jsonl, .ndjson, .txt; the text ones also .gz or .zst"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputIdentity:
    """What tells whether an input is still the one that was planned."""

    path: str
    """Absolute path or URL; of spooled data the name of its spool file."""
    size_bytes: int
    mtime_ns: int | None = None
    """Time of the last change; None where `sha256` or `etag` tells."""
    sha256: str | None = None
    """SHA-256 of spooled data, hex; None for files of the user."""
    etag: str | None = None
    """What an object store says of the content; None for files."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "InputIdentity":
        """The identity that `to_json` wrote."""
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file to read, and how."""

    path: Place
    format: Format
    compression: str | None = None
    """"gzip", "zstd" or None."""
    spooled: bool = False
    """The file is embatch's own copy of data that has no file: known by content, not by time."""


def classify(path: Place, *, spooled: bool = False) -> InputFile:
    """What the file's name says about its format. Raises `InvalidRequestError` when nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise InvalidRequestError(f"{path} has no known format: give one of {FORMATS_TEXT}")
    if compression and kind not in _COMPRESSIBLE:
        raise InvalidRequestError(
            f"{path}: {kind} files are compressed inside; decompress the file and give it as it is"
        )
    return InputFile(path=path, format=kind, compression=compression, spooled=spooled)


def find_inputs(pattern: str) -> list[Place]:
    """The files that a path, URL or glob names, sorted, absolute.

    Raises `InvalidRequestError` for a file that is not there, a folder, a pattern without a match.
    """
    if (url := parse_url(pattern)) is not None:
        return list(_find_objects(url))
    path = Path(pattern)
    if path.is_dir():
        raise InvalidRequestError(f"{pattern} is a folder: give its files, as {path}/*.parquet")
    if path.exists():
        return [path.absolute()]
    if not glob.has_magic(pattern):
        raise InvalidRequestError(f"there is no file {pattern}: check the path")
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
    files: list[Place] = [match.absolute() for match in found if match.is_file()]
    if not files:
        raise InvalidRequestError(f"no file matches {pattern}: check the pattern")
    return files


def _find_objects(url: str) -> Iterator[ObjectPlace]:
    """The objects that a URL means, whose steps may be patterns; `**` is any number of steps."""
    steps = url.split("/")
    plain = next((n for n, step in enumerate(steps) if glob.has_magic(step)), None)
    if plain is None:
        place = ObjectPlace(url)
        if place.exists():
            yield place
            return
        if any(True for _ in place.walk()):
            raise InvalidRequestError(f"{url} is a folder: give its files, as {url}/*.parquet")
        raise InvalidRequestError(f"there is no object {url}: check bucket and path")
    found = False
    for place in ObjectPlace("/".join(steps[:plain])).walk():
        if _matches(place.url.split("/")[plain:], steps[plain:]):
            found = True
            yield place
    if not found:
        raise InvalidRequestError(f"no object matches {url}: check bucket and pattern")


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[skip:], patterns[1:]) for skip in range(len(names) + 1))
    return bool(
        names and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])
    )


def identify(file: InputFile) -> InputIdentity:
    """The identity of a file as it is now. Raises `InputError` when it cannot be read."""
    size, change = _look_at(file)
    if file.spooled:
        with _readable(file), local_copy(file.path) as path:
            sha256 = file_sha256(path)
        return InputIdentity(path=file.path.name, size_bytes=size, sha256=sha256)
    if isinstance(change, str):
        return InputIdentity(path=str(file.path), size_bytes=size, etag=change)
    with _readable(file), local_copy(file.path) as path, path.open("rb"):
        pass
    return InputIdentity(path=str(file.path), size_bytes=size, mtime_ns=change)


def same(file: InputFile, known: InputIdentity) -> bool:
    """The file is still the one of this identity; of a spool file only the size is looked at."""
    size, change = _look_at(file)
    before = known.etag if isinstance(change, str) else known.mtime_ns
    return size == known.size_bytes and (file.spooled or change == before)


def _look_at(file: InputFile) -> tuple[int, int | str]:
    """Size, and what tells another content: the time of the change, or an object's etag."""
    with _readable(file):
        if isinstance(file.path, ObjectPlace):
            found = file.path.look_at()
            return found.size_bytes, found.version
        stat = file.path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _readable(file: InputFile) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{file.path} is gone: put the input back") from error
    except OSError as error:
        raise InputError(f"{file.path} cannot be read: {error.strerror}") from error
