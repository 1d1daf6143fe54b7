"""Which parts of an output count: their names, and what makes a finished part one of them.

On this machine a part counts once it has its name: a hidden file is renamed. In an object store
nothing is renamed: a part keeps the name with its writer's token, and counts once an empty object
of that name stands in the folder `.published/00012` of its number: so a step looks at as little,
however many parts there are. A finished output's manifest names them all.
"""

import re
from pathlib import Path
from typing import Final

from embatch.datasets.durable import fsync_path, storage_error
from embatch.errors import InvalidRequestError, NotFoundError
from embatch.storage.places import ObjectPlace, Place

_PART_NAME: Final = re.compile(r"part-(\d{5,})(\.[\w-]+)?\.parquet")
_COUNTED: Final = ".published"
"""Folder of an object store's output; in it one a number, with the mark of the part that counts."""


def part_name(number: int) -> str:
    """The name of a published part."""
    return f"part-{number:05d}.parquet"


def part_number(path: Place) -> int:
    """The number in the name of a published part."""
    found = _PART_NAME.fullmatch(path.name)
    if found is None:
        raise InvalidRequestError(f"{path.name} is not the name of a part")
    return int(found[1])


def is_settled(path: Place) -> bool:
    """The name never stands for another content: it holds the token of its writer's lease."""
    found = _PART_NAME.fullmatch(path.name)
    return found is not None and found[2] is not None


def temporary_name(number: int, token: str) -> str:
    """The hidden name under which the holder of the lease `token` writes a part."""
    return f".part-{number:05d}.{token}.tmp"


def object_name(number: int, token: str) -> str:
    """The name for good of the part that the holder of the lease `token` puts in an object store.

    No other writer has it, and readers take it for a part only once it counts.
    """
    return f"part-{number:05d}.{token}.parquet"


def publish_part(folder: Place, temp_name: str, number: int) -> str:
    """Gives a finished part its name, `part-00012.parquet`; anyone may do so again.

    In an object store it has its name, and counts from now on, instead of any other of its
    number. Raises `NotFoundError` when neither the hidden file nor the part is there.
    """
    if not isinstance(folder, Path):
        return _count_part(folder, temp_name, number)
    name = part_name(number)
    target = folder / name
    try:
        (folder / temp_name).replace(target)
    except FileNotFoundError as error:
        if not target.exists():
            raise NotFoundError(
                f"part {number} is lost: neither {temp_name} nor {name} is in {folder}"
            ) from error
    except OSError as error:
        raise storage_error(target, error) from error
    fsync_path(folder)
    return name


def _count_part(folder: ObjectPlace, name: str, number: int) -> str:
    if not (folder / name).exists():
        raise NotFoundError(f"part {number} is lost: {folder / name} is gone")
    for mark in _marks(folder, number).walk():
        if mark.name != name:
            mark.unlink(missing_ok=True)
    (_marks(folder, number) / name).write_bytes(b"")
    return name


def _marks(folder: ObjectPlace, number: int) -> ObjectPlace:
    return folder / _COUNTED / f"{number:05d}"


def _mark(part: ObjectPlace) -> ObjectPlace:
    """What makes this part count, whether it is there or not."""
    return _marks(part.parent, part_number(part)) / part.name


def list_parts(folder: Place) -> list[Place]:
    """The parts that lie in the folder, whether they count or not, by name."""
    if isinstance(folder, Path):
        return sorted(folder.glob("part-*.parquet"))
    return list(folder.glob("part-*.parquet"))


def published_parts(folder: Place) -> list[Place]:
    """The parts that count so far, by name."""
    if isinstance(folder, Path):
        return sorted(folder.glob("part-*.parquet"))
    return [folder / mark.name for mark in (folder / _COUNTED).walk()]


def remove_part(folder: Place, number: int) -> None:
    """Removes the part of this number that counts, if there is one."""
    if isinstance(folder, Path):
        (folder / part_name(number)).unlink(missing_ok=True)
        return
    for mark in _marks(folder, number).walk():
        forget_part(folder / mark.name)


def forget_part(place: Place) -> None:
    """Removes one file of a part, whatever counts."""
    if not isinstance(place, Path):
        _mark(place).unlink(missing_ok=True)
    place.unlink(missing_ok=True)


def reject_part(place: Place) -> None:
    """Sets an unsound part aside, under a name that no reader takes for a part."""
    aside = place.with_name(f".rejected-{place.name}")
    if isinstance(place, Path):
        place.rename(aside)
        return
    _mark(place).unlink(missing_ok=True)
    place.rename(ObjectPlace(str(aside)))


def recount_part(place: Place) -> None:
    """Has a part count that was taken over from another journal."""
    if not isinstance(place, Path):
        _mark(place).write_bytes(b"")
