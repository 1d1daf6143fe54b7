"""A place where a file or a folder lies: a path of this machine, or a name in an object store.

`Path` is the place on this machine, used as it is: nothing is copied. `ObjectPlace` speaks those
of its words that embatch needs. The functions below do for both what the two do differently: a
file that a library must open is `local_copy(place)`, and one that must appear whole or not at all
is written in `datasets.durable`.
"""

import errno
import fnmatch
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from embatch.config import StorageSettings
from embatch.errors import ConfigError, InvalidRequestError, NotFoundError
from embatch.storage.cache import Cache, sweep
from embatch.storage.urls import parse_url

if TYPE_CHECKING:
    from embatch.storage.objects import ObjectStorage, StoredObject

UNUSED_S: Final = 7 * 86_400.0
"""What a run left on this machine goes after a week."""
_OBJECTS: Final = "objects"
"""Folder of the cache for copies of objects."""
_RUNS: Final = "runs"
"""Folder of the cache for what a run writes on this machine only."""


@lru_cache(maxsize=8)
def _opened(settings: StorageSettings) -> tuple["ObjectStorage", Cache]:
    try:
        from embatch.storage.stores import cloud_storage
    except ImportError:
        raise ConfigError(
            "s3://, gs:// and az:// need obstore: pip install 'embatch[storage]'"
        ) from None
    sweep(settings.cache / _RUNS, UNUSED_S)
    return cloud_storage(settings), Cache(settings.cache / _OBJECTS, settings.cache_bytes)


def _storage() -> "ObjectStorage":
    return _opened(StorageSettings.from_environment())[0]


def _cache() -> Cache:
    return _opened(StorageSettings.from_environment())[1]


@dataclass(frozen=True, slots=True, order=True)
class ObjectPlace:
    """An object, or the folder that names make. Nothing is asked for until it is needed."""

    url: str
    """`s3://bucket/path`, without a slash at its end."""

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        raise InvalidRequestError(f"{self.url} is no file of this machine")

    def __truediv__(self, name: str) -> "ObjectPlace":
        return ObjectPlace(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last step."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's last suffix, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name."""
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> "ObjectPlace":
        """The folder that this lies in."""
        return ObjectPlace(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> "ObjectPlace":
        """The place beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "ObjectPlace":
        """The place beside this one with another last suffix."""
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def exists(self) -> bool:
        """There is an object of this name."""
        try:
            self.look_at()
        except FileNotFoundError:
            return False
        return True

    def look_at(self) -> "StoredObject":
        """What the store knows of the object; FileNotFoundError without one."""
        try:
            return _storage().look_at(self.url)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error

    def glob(self, pattern: str) -> Iterator["ObjectPlace"]:
        """The objects and folders right in this folder whose names match, by name."""
        objects, folders = _storage().names(self.url)
        for name in sorted({*objects, *folders}):
            if fnmatch.fnmatchcase(name, pattern):
                yield self / name

    def walk(self) -> Iterator["ObjectPlace"]:
        """Every object below this folder, by name."""
        for entry in _storage().list(self.url):
            yield ObjectPlace(entry.uri)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the object and its copy here."""
        if not missing_ok:
            self.look_at()
        _storage().delete([self.url])
        _cache().remove(_copy_of(self))

    def rename(self, target: "ObjectPlace") -> None:
        """Gives the object another name."""
        _storage().move(self.url, target.url)
        _cache().remove(_copy_of(self))

    def read_bytes(self) -> bytes:
        """A small object whole; FileNotFoundError without one."""
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, str]:
        """A small object whole, and its version, which `write_bytes` may be asked to replace."""
        try:
            return _storage().read_bytes(self.url)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error

    def write_bytes(self, data: bytes, *, replacing: str | None = None) -> None:
        """Writes a small object; see `ObjectStorage.put_bytes`."""
        _storage().put_bytes(self.url, data, replacing=replacing)

    def put(self, path: Path) -> None:
        """Copies a file of this machine here; readers see all of it or none."""
        _storage().put(self.url, path)

    def chunks(self) -> Iterator[bytes]:
        """The object's bytes, streamed; FileNotFoundError without one."""
        try:
            yield from _storage().read(self.url)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error


Place = Path | ObjectPlace
"""Where a file or a folder lies."""


def parse_place(place: str | os.PathLike[str] | ObjectPlace) -> Place:
    """The place that a user names: a URL of an object store, or a path, made absolute."""
    if isinstance(place, ObjectPlace):
        return place
    url = parse_url(place)
    return ObjectPlace(url) if url is not None else Path(place).absolute()


def named(place: str) -> Place:
    """The place as it was typed: a URL of an object store, or a path, not made absolute."""
    url = parse_url(place)
    return ObjectPlace(url) if url is not None else Path(place)


def absolute(place: str | os.PathLike[str] | ObjectPlace) -> str:
    """The place as any process may be told it: a URL, or an absolute path."""
    return str(parse_place(place))


def _copy_of(place: ObjectPlace, version: str = "") -> Path:
    return _cache().path_of(f"{place.url} {version}", place.suffix)


@contextmanager
def local_copy(place: Place, *, settled: bool = False) -> Iterator[Path]:
    """A file of this machine that holds what lies at `place`, for as long as the block lasts.

    That of this machine is the file itself. `settled` says that the name never stands for other
    content, so that a copy that is here serves unasked. FileNotFoundError without an object.
    """
    if isinstance(place, Path):
        yield place
        return
    cache = _cache()
    version = "" if settled else place.look_at().version
    path = _copy_of(place, version)
    while True:
        with cache.held(path) as found:
            if found:
                yield path
                return
        cache.fill(path, place.chunks())


@contextmanager
def new_object(place: ObjectPlace, *, settled: bool = False) -> Iterator[Path]:
    """A file of this machine to write to; at the end the object holds it, whole.

    After an exception, and when the file was removed, the object stays as it was. A `settled` one
    keeps its copy here.
    """
    cache = _cache()
    with cache.new_file() as written:
        yield written
        if not written.exists():
            return
        place.put(written)
        if settled:
            cache.adopt(written, _copy_of(place))


def scratch_of(place: Place) -> Path:
    """A folder of this machine for what work at `place` needs here alone: the place itself, where
    it is on this machine."""
    if isinstance(place, Path):
        return place
    here = StorageSettings.from_environment().cache / _RUNS
    return here.joinpath(*place.url.replace("://", "/").split("/"))


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, but never the one of an output that a work folder is in.

    That one is made by whoever enters the run, and by nobody else: where it is missing, a share
    is not mounted, and what was written there would be lost. FileNotFoundError then.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in missing:
        if is_work_folder(one) and one.parent in missing:
            words = f"{one.parent} is not there: is what all machines share mounted here?"
            raise FileNotFoundError(errno.ENOENT, words)
    folder.mkdir(parents=True, exist_ok=True)


def is_work_folder(folder: Path) -> bool:
    """It bears the name of the folder of a run's work, in the folder of its output."""
    return folder.name == ".work" or (folder.name == "work" and folder.parent.suffix == ".embatch")


def remove_tree(place: Place) -> None:
    """Removes a folder with all that lies in it; it need not be there."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
        return
    for entry in place.walk():
        entry.unlink(missing_ok=True)


def share_folder(folder: Path, place: Place, *, last: str) -> None:
    """Puts the files of a folder of this machine at `place`, `last` after all others."""
    if isinstance(place, Path):
        return  # the folder itself
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        (place / name).put(folder / name)


def fetch_folder(place: Place, folder: Path, *, last: str) -> Path:
    """A folder of this machine with the files at `place`, copied unless they are here; `last`
    after all others. FileNotFoundError when they are not whole there."""
    if isinstance(place, Path) or (folder / last).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sorted(place.walk(), key=lambda entry: entry.name == last):
        part = folder / f".{entry.name}.{os.getpid()}.tmp"
        with part.open("wb") as file:
            file.writelines(entry.chunks())
        part.replace(folder / entry.name)
    if not (folder / last).exists():
        raise FileNotFoundError(f"{place} is not whole")
    return folder


class ObjectStream(io.RawIOBase):
    """An object as a file that is read from its beginning to its end, once."""

    def __init__(self, place: ObjectPlace) -> None:
        super().__init__()
        self._chunks = place.chunks()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """Fills what it can of the buffer; 0 at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
