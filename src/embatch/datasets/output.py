"""Where an output keeps its parts, manifest and failures."""

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.datasets.durable import write_whole
from embatch.errors import InvalidRequestError, StorageError
from embatch.storage.places import Place, local_copy, parse_place, scratch_of

_SINGLE_FILES: Final = frozenset({".parquet", ".npy"})
_LONGEST_SHOWN: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPaths:
    """The places of one output, all absolute. Nothing needs to exist."""

    out: Place
    """What the user named: a folder, or one `.parquet` or `.npy` file."""
    parts: Place
    """The folder of the parts."""
    manifest: Place
    failures: Place
    work: Place
    """The folder of stages and whatever else a run needs while it works."""
    scratch: Path
    """The folder of what a process needs for itself; `work` where that is on this machine."""
    single_file: Place | None
    """The one file to assemble; None for a folder of parts."""
    keys_file: Place | None
    """The keys beside an `.npy` file."""

    @property
    def form(self) -> str:
        """What stands here: "folder", or the kind of the one file: "parquet" or "npy"."""
        return "folder" if self.single_file is None else self.single_file.suffix.lower()[1:]

    def sibling(self, form: str) -> Place:
        """What another form of output with the same folder is called."""
        return self.parts if form == "folder" else self.parts.with_suffix(f".{form}")

    @classmethod
    def for_out(cls, out: str) -> "OutputPaths":
        """The paths of the output that the user calls `out`.

        InvalidRequestError for what cannot be an output, StorageError where it cannot be told.
        """
        path = parse_place(out)
        single = path.suffix.lower() in _SINGLE_FILES
        if isinstance(path, Path):
            _require_form(out, path, single=single)
        base = path.with_suffix(".embatch") if single else path
        npy = path.suffix.lower() == ".npy"
        work = base / ("work" if single else ".work")
        return cls(
            out=path,
            parts=base,
            manifest=base / "manifest.json",
            failures=base / "failures.jsonl",
            work=work,
            scratch=scratch_of(work),
            single_file=path if single else None,
            keys_file=path.with_suffix(".keys.parquet") if npy else None,
        )


def _require_form(out: str, path: Path, *, single: bool) -> None:
    try:
        wrong = path.is_dir() if single else path.is_file()
    except OSError as error:
        said = f"{_shown(out)} cannot be looked at: {error.strerror or error}"
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidRequestError(said) from None
        raise StorageError(said) from None
    if wrong and single:
        raise InvalidRequestError(f"{out} is a folder: an output of this name is one file")
    if wrong:
        raise InvalidRequestError(
            f"{out} is a file: name a folder, or a file that ends in .parquet or .npy"
        )


def _shown(out: str) -> str:
    """The name, cut where it is too long for a sentence."""
    return out if len(out) <= _LONGEST_SHOWN else f"{out[:_LONGEST_SHOWN]}…"


def write_failures(path: Place, failures: Iterable[Mapping[str, Any]]) -> int:
    """Writes `{key, row, code, message, attempts}` a line, whole or not at all. Gives how many."""
    count = 0
    with write_whole(path) as temporary, temporary.open("wb") as stream:
        for failure in failures:
            stream.write(orjson.dumps(failure, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_failures(path: Place) -> Iterator[dict[str, Any]]:
    """The failures that `write_failures` wrote, in their order; none when there is no file."""
    if not path.exists():
        return
    with local_copy(path) as file, file.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)
