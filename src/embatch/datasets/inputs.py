"""Which files an input means, what they are, and whether they are still the same."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from embatch.datasets.durable import file_sha256
from embatch.errors import InputError, InvalidRequestError


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
    """Absolute path; of spooled data the name of its spool file."""
    size_bytes: int
    mtime_ns: int | None = None
    """Time of the last change; None where `sha256` tells."""
    sha256: str | None = None
    """SHA-256 of spooled data, hex; None for files of the user."""

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

    path: Path
    format: Format
    compression: str | None = None
    """"gzip", "zstd" or None."""
    spooled: bool = False
    """The file is embatch's own copy of data that has no file: known by content, not by time."""


def classify(path: Path, *, spooled: bool = False) -> InputFile:
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


def find_inputs(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted, absolute.

    Raises `InvalidRequestError` for a file that is not there, a folder, a pattern without a match.
    """
    path = Path(pattern)
    if path.is_dir():
        raise InvalidRequestError(f"{pattern} is a folder: give its files, as {path}/*.parquet")
    if path.exists():
        return [path.absolute()]
    if "://" in pattern:
        raise InvalidRequestError(
            f"{pattern} is not a local file: download it first, or mount its bucket"
        )
    if not glob.has_magic(pattern):
        raise InvalidRequestError(f"there is no file {pattern}: check the path")
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
    files = [match.absolute() for match in found if match.is_file()]
    if not files:
        raise InvalidRequestError(f"no file matches {pattern}: check the pattern")
    return files


def identify(file: InputFile) -> InputIdentity:
    """The identity of a file as it is now. Raises `InputError` when it cannot be read."""
    size, mtime_ns = _stat(file)
    if file.spooled:
        with _readable(file):
            sha256 = file_sha256(file.path)
        return InputIdentity(path=file.path.name, size_bytes=size, sha256=sha256)
    with _readable(file), file.path.open("rb"):
        pass
    return InputIdentity(path=str(file.path), size_bytes=size, mtime_ns=mtime_ns)


def same(file: InputFile, known: InputIdentity) -> bool:
    """The file is still the one of this identity; of a spool file only the size is looked at."""
    size, mtime_ns = _stat(file)
    return size == known.size_bytes and (file.spooled or mtime_ns == known.mtime_ns)


def _stat(file: InputFile) -> tuple[int, int]:
    with _readable(file):
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
