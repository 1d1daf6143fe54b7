"""Uploaded files and running uploads: bytes in a folder, their records in a database.

<data>/files.db          what is known of each file and upload
<data>/blobs/<upload>    the bytes; a file keeps those of its upload, under the same name

A file has a record once its bytes are flushed, and not before: kill -9 leaves an upload that can
go on, or a file that is whole.
"""

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from embatch.server.settings import ServerSettings
from embatch.server.wire import ApiError, invalid
from embatch.server.wire_shapes import ShownFile
from embatch.service.database import Database
from embatch.service.files import sync_folder

MAX_NAME_CHARS: Final = 512
_ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_UPLOAD_ID: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_UPLOAD_ID_BYTES: Final = 20
_MADE_CHARS: Final = 12
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    blob TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL
);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    file_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    declared INTEGER,
    state TEXT NOT NULL CHECK (state IN ('active', 'final', 'cancelled')),
    created_at REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload as it was begun."""

    id: str
    """Its secret: who knows it may go on with it."""
    file_id: str
    """Id of the file that it becomes."""
    display_name: str
    mime_type: str
    declared: int | None
    """Bytes that were announced, None when they were not."""
    state: str
    """ "active", "final" or "cancelled"."""


class Shelf:
    """The files of one server. Safe to use from several threads, for different uploads."""

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the folder's records. `clock` gives seconds since 1970."""
        self._settings = settings
        self._clock = clock
        self._blobs = settings.folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._database = Database(settings.folder / "files.db", schema=_SCHEMA, version=_VERSION)

    def begin(
        self, *, name: str, display_name: str, mime_type: str, declared: int | None
    ) -> Upload:
        """A new upload. ApiError 400 or 409 for a name that no file can have."""
        _check_display_name(display_name)
        if declared is not None and declared > self._settings.max_file_bytes:
            raise self.too_large()
        upload = Upload(
            id=secrets.token_hex(_UPLOAD_ID_BYTES),
            file_id=self._new_id(name),
            display_name=display_name,
            mime_type=mime_type or "application/octet-stream",
            declared=declared,
            state="active",
        )
        self.blob(upload).touch()
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, 'active', ?)",
                (
                    upload.id, upload.file_id, upload.display_name, upload.mime_type,
                    upload.declared, self._clock(),
                ),
            )  # fmt: skip
        return upload

    def too_large(self) -> ApiError:
        """400 of a file over the limit."""
        most = self._settings.max_file_bytes
        return invalid(f"File is too large: {most} bytes are the limit.")

    def _new_id(self, name: str) -> str:
        if not name:
            return "".join(secrets.choice(_ALPHABET) for _ in range(_MADE_CHARS))
        file_id = name.removeprefix("files/")
        if not _ID.fullmatch(file_id):
            raise invalid("file.name: up to 40 characters a-z, 0-9 and inner dashes are allowed.")
        if self._database.rows("SELECT 1 FROM files WHERE id = ?", (file_id,)):
            raise _exists(file_id)
        return file_id

    def describe(self, upload: Upload, *, name: str, display_name: str, mime_type: str) -> Upload:
        """The upload with what was told of it after its begin. ApiError 400 or 409 as there."""
        _check_display_name(display_name)
        return replace(
            upload,
            file_id=self._new_id(name) if name else upload.file_id,
            display_name=display_name,
            mime_type=mime_type or upload.mime_type,
        )

    def upload(self, upload_id: str) -> Upload:
        """An upload now. ApiError 404."""
        rows = []
        if _UPLOAD_ID.fullmatch(upload_id):
            rows = self._database.rows("SELECT * FROM uploads WHERE id = ?", (upload_id,))
        if not rows:
            raise ApiError(
                404, "There is no such upload.", headers={"x-goog-upload-status": "cancelled"}
            )
        row = rows[0]
        return Upload(**{name: row[name] for name in Upload.__slots__})

    def blob(self, upload: Upload) -> Path:
        """Where the bytes are."""
        return self._blobs / upload.id

    def received(self, upload: Upload) -> int:
        """Bytes that have come so far."""
        return self.blob(upload).stat().st_size

    def cancel(self, upload: Upload) -> None:
        """Ends an active upload and removes its bytes."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE uploads SET state = 'cancelled' WHERE id = ? AND state = 'active'",
                (upload.id,),
            )
        if self.upload(upload.id).state == "cancelled":
            self.blob(upload).unlink(missing_ok=True)

    def finish(self, upload: Upload) -> ShownFile:
        """Makes an upload's bytes a file, durably. ApiError 409 when its name is taken by now."""
        with self.blob(upload).open("rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        sync_folder(self._blobs)
        now = self._clock()
        with self._database.transaction() as db:
            if db.execute("SELECT 1 FROM files WHERE id = ?", (upload.file_id,)).fetchone():
                raise _exists(upload.file_id)
            row = db.execute(
                "INSERT INTO files (id, blob, display_name, mime_type, size_bytes, sha256,"
                " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (
                    upload.file_id, upload.id, upload.display_name, upload.mime_type, size,
                    sha256, now, now + self._settings.file_lifetime_s,
                ),
            ).fetchone()  # fmt: skip
            db.execute("UPDATE uploads SET state = 'final' WHERE id = ?", (upload.id,))
        return _parse_file(row)

    def find(self, file_id: str) -> ShownFile:
        """A file that is there and not expired; else the 403 that the real service gives."""
        return _parse_file(self._row(file_id))

    def of_upload(self, upload: Upload) -> ShownFile | None:
        """The file that an upload became, while it is there."""
        rows = self._database.rows(
            "SELECT * FROM files WHERE blob = ? AND expires_at > ?", (upload.id, self._clock())
        )
        return _parse_file(rows[0]) if rows else None

    def page(self, *, before_seq: int | None, size: int) -> tuple[list[ShownFile], int | None]:
        """Files, newest first, and where the next page begins; None when there is none."""
        rows = self._database.rows(
            "SELECT * FROM files WHERE (?1 IS NULL OR seq < ?1) AND expires_at > ?2"
            " ORDER BY seq DESC LIMIT ?3",
            (before_seq, self._clock(), size + 1),
        )
        page = rows[:size]
        return [_parse_file(row) for row in page], page[-1]["seq"] if len(rows) > size else None

    def delete(self, file_id: str) -> None:
        """Removes a file. ApiError 403 when it is not there."""
        row = self._row(file_id)
        with self._database.transaction() as db:
            if db.execute("DELETE FROM files WHERE seq = ?", (row["seq"],)).rowcount == 0:
                raise absent_file(file_id)
        (self._blobs / row["blob"]).unlink(missing_ok=True)

    def open_input(self, name: str) -> BinaryIO:
        """A file by `files/…`, open for reading. ApiError 403 when it is not there."""
        file_id = name.removeprefix("files/")
        row = self._row(file_id)
        try:
            return Path(self._blobs, row["blob"]).open("rb")
        except FileNotFoundError:
            raise absent_file(file_id) from None

    def size_of(self, name: str) -> int:
        """Bytes of a file by `files/…`; 0 when it is not there."""
        rows = self._database.rows(
            "SELECT size_bytes FROM files WHERE id = ?", (name.removeprefix("files/"),)
        )
        return int(rows[0]["size_bytes"]) if rows else 0

    def size_bytes(self) -> int:
        """Bytes of all files."""
        rows = self._database.rows("SELECT coalesce(sum(size_bytes), 0) AS size FROM files")
        return int(rows[0]["size"])

    def sweep(self) -> None:
        """Removes what has expired, and bytes that no record names any more."""
        now = self._clock()
        with self._database.transaction() as db:
            db.execute("DELETE FROM files WHERE expires_at <= ?", (now,))
            db.execute(
                "DELETE FROM uploads WHERE created_at <= ?", (now - self._settings.file_lifetime_s,)
            )
        for path in self._blobs.iterdir():
            if not self._database.rows(
                "SELECT 1 FROM files WHERE blob = ?1 UNION ALL"
                " SELECT 1 FROM uploads WHERE id = ?1 AND state = 'active'",
                (path.name,),
            ):
                with suppress(FileNotFoundError):
                    if now - path.stat().st_mtime > _ORPHAN_AGE_S:
                        path.unlink()

    def _row(self, file_id: str) -> sqlite3.Row:
        rows = []
        if _ID.fullmatch(file_id):
            rows = self._database.rows(
                "SELECT * FROM files WHERE id = ? AND expires_at > ?", (file_id, self._clock())
            )
        if not rows:
            raise absent_file(file_id)
        return rows[0]

    def close(self) -> None:
        """Closes the database."""
        self._database.close()


_ORPHAN_AGE_S: Final = 60.0
"""Bytes that are being received have a record soon after; those of an older name have none."""


def _parse_file(row: sqlite3.Row) -> ShownFile:
    return ShownFile(
        id=row["id"],
        display_name=row["display_name"],
        mime_type=row["mime_type"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
        expires_at=datetime.fromtimestamp(row["expires_at"], UTC),
    )


def _check_display_name(name: str) -> None:
    if len(name) > MAX_NAME_CHARS:
        raise invalid(f"file.display_name: at most {MAX_NAME_CHARS} characters are allowed.")


def absent_file(file_id: str) -> ApiError:
    """403 of a file that is not there, as the real service says it."""
    shown = file_id if _ID.fullmatch(file_id) else "of that name"
    return ApiError(
        403, f"You do not have permission to access the File {shown} or it may not exist."
    )


def _exists(file_id: str) -> ApiError:
    return ApiError(409, f"File {file_id} already exists.")
