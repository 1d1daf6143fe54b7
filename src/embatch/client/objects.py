"""Cloud Storage: copied there and back, listed, removed, and read line by line."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embatch.client.cutter import LineCutter
from embatch.client.files import part_beside
from embatch.client.flow import Emit, Flow, Work, perform
from embatch.client.vertex_places import Places
from embatch.errors import InputError
from embatch.types.files import RemoteFile

if TYPE_CHECKING:
    from embatch.storage.objects import ObjectStorage


def put(storage: "ObjectStorage", uri: str, path: Path) -> Flow[None]:
    """Copies a local file to `uri`; InputError for one that is empty or cannot be read."""
    if not path.is_file() or not path.stat().st_size:
        raise InputError(f"{path} is no file with anything in it")

    def copy() -> None:
        try:
            path.open("rb").close()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        storage.put(uri, path)

    yield from perform(Work(call=copy))


def upload(
    storage: "ObjectStorage", places: Places, path: Path, *, display_name: str, mime_type: str
) -> Flow[RemoteFile]:
    """Copies a local file into a folder of its own under the staging folder."""
    folder = places.folder(f"{display_name} {secrets.token_hex(8)}")
    uri = f"{folder}/{path.name}"
    yield from put(storage, uri, path)
    return RemoteFile(
        name=uri,
        display_name=display_name,
        mime_type=mime_type,
        size_bytes=path.stat().st_size,
        state="active",
    )


def get(storage: "ObjectStorage", uri: str) -> Flow[RemoteFile]:
    """What Cloud Storage knows of an object."""
    found = yield from perform(Work(call=lambda: storage.look_at(uri)))
    return RemoteFile(name=found.uri, size_bytes=found.size_bytes, state="active")


def delete(storage: "ObjectStorage", uri: str) -> Flow[None]:
    """Removes an object; one that is gone already is fine."""
    yield from perform(Work(call=lambda: storage.delete([uri])))


def clear(storage: "ObjectStorage", folder: str) -> Flow[None]:
    """Removes every object of a folder."""
    found = yield from perform(Work(call=lambda: storage.list(folder)))
    yield from perform(Work(call=lambda: storage.delete([entry.uri for entry in found])))


def listed(storage: "ObjectStorage", folder: str) -> Flow[None]:
    """Emits every object of a folder."""
    for entry in (yield from perform(Work(call=lambda: storage.list(folder)))):
        file = RemoteFile(name=entry.uri, size_bytes=entry.size_bytes, state="active")
        yield from perform(Emit(value=file))


def lines(
    storage: "ObjectStorage", uri: str, take: Callable[[Sequence[bytes]], Flow[None]]
) -> Flow[None]:
    """Gives every line of an object to `take`, some at a time."""
    chunks = storage.read(uri)
    cutter = LineCutter()
    while True:
        chunk = yield from perform(Work(call=lambda: next(chunks, b"")))
        if not chunk:
            break
        yield from take(cutter.feed(chunk))
    yield from take(cutter.finish())


def download_to(storage: "ObjectStorage", uri: str, path: Path) -> Flow[Path]:
    """Copies an object to `path`, which appears when it is whole."""
    part = part_beside(path)

    def copy() -> None:
        try:
            with part.open("wb") as file:
                for chunk in storage.read(uri):
                    file.write(chunk)
            part.replace(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    yield from perform(Work(call=copy))
    return path
