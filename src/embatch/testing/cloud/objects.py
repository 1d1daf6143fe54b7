"""Cloud Storage: the XML API, as obstore's GCSStore speaks it."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import unquote
from xml.sax.saxutils import escape

from embatch.testing.cloud.answers import Answer, ApiError, Request, file_answer
from embatch.testing.cloud.clock import timestamp
from embatch.testing.cloud.core import Core, route
from embatch.testing.cloud.store import Doc

_PAGE_MOST: Final = 1000
_XML: Final = {"Content-Type": "application/xml; charset=UTF-8"}


class StorageError(ApiError):
    """An error in the words of the XML API."""

    def __init__(self, code: int, word: str, message: str) -> None:
        super().__init__(code, message)
        self._word = word

    def answer(self) -> Answer:
        """The error as XML."""
        return _xml(
            f"<Error><Code>{self._word}</Code><Message>{escape(self.message)}</Message></Error>",
            self.code,
        )


def _xml(text: str, status: int = 200) -> Answer:
    body = '<?xml version="1.0" encoding="UTF-8"?>' + text
    return Answer(status, dict(_XML), [body.encode()])


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of a `gs://` URI. ApiError 400 for any other."""
    caught = re.match(r"gs://([^/]+)/?(.*)$", uri)
    if caught is None:
        raise ApiError(400, "Only gs:// URIs are read and written.")
    return caught[1], caught[2]


def find_object(core: Core, bucket: str, key: str) -> Doc | None:
    """An object, or None."""
    return core.store.get("object", f"{bucket}/{key}")


def objects_under(core: Core, bucket: str, prefix: str) -> list[Doc]:
    """Objects whose keys begin with `prefix`, in the order of their keys."""
    found = [
        doc
        for doc in core.store.all("object")
        if doc["bucket"] == bucket and doc["key"].startswith(prefix)
    ]
    return sorted(found, key=lambda doc: str(doc["key"]).encode())


def object_path(core: Core, doc: Doc) -> Path:
    """Where an object's bytes are."""
    path: Path = core.store.folder / doc["path"]
    return path


def keep_object(core: Core, bucket: str, key: str, source: Path, content_type: str) -> Doc:
    """Makes a file an object; the file is taken over."""
    path = core.store.new_path("objects")
    with source.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    shutil.move(source, path)
    doc = {
        "bucket": bucket,
        "key": key,
        "size_bytes": path.stat().st_size,
        "etag": f'"{md5}"',
        "generation": 1_700_000_000_000_000 + core.store.next_number("generation"),
        "path": str(path.relative_to(core.store.folder)),
        "content_type": content_type,
        "updated_s": core.clock.now(),
    }
    old = find_object(core, bucket, key)
    core.store.put("object", f"{bucket}/{key}", doc)
    if old:
        object_path(core, old).unlink(missing_ok=True)
    return doc


def _head(doc: Doc) -> dict[str, str]:
    return {
        "ETag": doc["etag"],
        "x-goog-generation": str(doc["generation"]),
        "Last-Modified": formatdate(doc["updated_s"], usegmt=True),
        "Content-Type": doc["content_type"],
    }


def _wanted(core: Core, request: Request) -> Doc:
    doc = find_object(core, request.names["bucket"], request.names["key"])
    if doc is None:
        raise StorageError(404, "NoSuchKey", "The specified key does not exist.")
    return doc


def _check_generation(core: Core, request: Request) -> None:
    asked = request.headers.get("x-goog-if-generation-match")
    if asked is None:
        return
    doc = find_object(core, request.names["bucket"], request.names["key"])
    if asked != str(doc["generation"] if doc else 0):
        raise StorageError(412, "PreconditionFailed", "A pre-condition did not hold.")


def _receive(core: Core, request: Request) -> Path:
    path = core.store.new_path("uploads")
    try:
        with path.open("wb") as file:
            for piece in request.body.pieces():
                file.write(piece)
    except BaseException:
        path.unlink()
        raise
    return path


def _put(core: Core, request: Request) -> Answer:
    if "partNumber" in request.query:
        return _put_part(core, request)
    source = request.headers.get("x-goog-copy-source")
    if source is not None:
        return _copy(core, request, unquote(source))
    path = _receive(core, request)
    try:
        with core.lock:
            _check_generation(core, request)
            doc = keep_object(core, *_place(request), path, _content_type(request))
    finally:
        path.unlink(missing_ok=True)
    return Answer(200, _head(doc))


def _place(request: Request) -> tuple[str, str]:
    return request.names["bucket"], request.names["key"]


def _content_type(request: Request) -> str:
    return str(request.headers.get("Content-Type") or "application/octet-stream")


def _copy(core: Core, request: Request, source: str) -> Answer:
    core.relabel("storage.copy")
    bucket, _, key = source.lstrip("/").partition("/")
    doc = find_object(core, bucket, key)
    if doc is None:
        raise StorageError(404, "NoSuchKey", "The specified key does not exist.")
    path = core.store.new_path("uploads")
    os.link(object_path(core, doc), path)
    try:
        with core.lock:
            _check_generation(core, request)
            copy = keep_object(core, *_place(request), path, doc["content_type"])
    finally:
        path.unlink(missing_ok=True)
    return _xml(f"<CopyObjectResult><ETag>{copy['etag']}</ETag></CopyObjectResult>")


def _get(core: Core, request: Request) -> Answer:
    doc = _wanted(core, request)
    return file_answer(
        object_path(core, doc), _head(doc), request.headers.get("Range"), request.method
    )


def _delete(core: Core, request: Request) -> Answer:
    if "uploadId" in request.query:
        shutil.rmtree(_parts_folder(core, request), ignore_errors=True)
        return Answer(204)
    doc = _wanted(core, request)
    core.store.delete("object", f"{doc['bucket']}/{doc['key']}")
    object_path(core, doc).unlink(missing_ok=True)
    return Answer(204)


def _parts_folder(core: Core, request: Request) -> Path:
    upload_id = request.query["uploadId"]
    folder: Path = core.store.folder / "uploads" / f"parts-{upload_id}"
    if not upload_id.isalnum() or not folder.is_dir():
        raise StorageError(404, "NoSuchUpload", "The requested upload was not found.")
    return folder


def _post(core: Core, request: Request) -> Answer:
    core.relabel("storage.multipart")
    if "uploads" in request.query:
        folder = core.store.new_path("uploads")
        upload_id = folder.name
        folder = folder.with_name(f"parts-{upload_id}")
        folder.mkdir()
        (folder / "type").write_text(_content_type(request))
        return _xml(
            "<InitiateMultipartUploadResult>"
            f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        )
    folder = _parts_folder(core, request)
    listed = re.findall(
        r"<Part>\s*<ETag>(.*?)</ETag>\s*<PartNumber>(\d+)</PartNumber>",
        request.body.read().decode(),
        re.DOTALL,
    )
    path = core.store.new_path("uploads")
    with path.open("wb") as target:
        for etag, number in listed:
            _append_part(folder / f"part-{number}", etag.replace("&quot;", '"'), target.fileno())
    content_type = (folder / "type").read_text()
    with core.lock:
        _check_generation(core, request)
        doc = keep_object(core, *_place(request), path, content_type)
    shutil.rmtree(folder)
    answer = _xml(
        f"<CompleteMultipartUploadResult><ETag>{doc['etag']}</ETag></CompleteMultipartUploadResult>"
    )
    answer.headers["x-goog-generation"] = str(doc["generation"])
    return answer


def _append_part(part: Path, etag: str, target: int) -> None:
    if not part.exists() or part.with_suffix(".etag").read_text() != etag:
        raise StorageError(400, "InvalidPart", "A part was not uploaded or its ETag is another.")
    with part.open("rb") as source:
        size, at = part.stat().st_size, 0
        while at < size:
            at += os.sendfile(target, source.fileno(), at, size - at)


def _put_part(core: Core, request: Request) -> Answer:
    core.relabel("storage.part")
    folder = _parts_folder(core, request)
    path = _receive(core, request)
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    part = folder / f"part-{int(request.query['partNumber'])}"
    path.replace(part)
    part.with_suffix(".etag").write_text(f'"{md5}"')
    return Answer(200, {"ETag": f'"{md5}"'})


def _list(core: Core, request: Request) -> Answer:
    query, bucket = request.query, request.names["bucket"]
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after") or ""
    most = min(int(query.get("max-keys") or _PAGE_MOST), _PAGE_MOST)
    entries = _entries(objects_under(core, bucket, prefix), prefix, delimiter)
    left = [(name, doc) for name, doc in entries if name > after]
    page = left[:most]
    written = [_entry_xml(name, doc) for name, doc in page]
    truncated = len(left) > most
    token = (
        f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if truncated else ""
    )
    return _xml(
        f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
        f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        f"{token}{''.join(written)}</ListBucketResult>"
    )


def _entries(docs: Iterable[Doc], prefix: str, delimiter: str) -> list[tuple[str, Doc | None]]:
    """Keys with their objects; what lies deeper than `delimiter` as one common prefix."""
    entries: dict[str, Doc | None] = {}
    for doc in docs:
        key = str(doc["key"])
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            entries[key] = doc
        else:
            entries[key[: end + len(delimiter)]] = None
    return sorted(entries.items())


def _entry_xml(name: str, doc: Doc | None) -> str:
    if doc is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    return (
        f"<Contents><Key>{escape(name)}</Key><Generation>{doc['generation']}</Generation>"
        f"<LastModified>{timestamp(doc['updated_s'])}</LastModified><ETag>{doc['etag']}</ETag>"
        f"<Size>{doc['size_bytes']}</Size></Contents>"
    )


_BUCKET: Final = "/storage/{bucket}"
_OBJECT: Final = _BUCKET + "/{key*}"
ROUTES: Final = (
    route("GET", _BUCKET + "/?", "storage.list", _list, "storage"),
    route("PUT", _OBJECT, "storage.put", _put, "storage"),
    route("POST", _OBJECT, "storage.multipart", _post, "storage"),
    route("GET", _OBJECT, "storage.get", _get, "storage"),
    route("HEAD", _OBJECT, "storage.head", _get, "storage"),
    route("DELETE", _OBJECT, "storage.delete", _delete, "storage"),
)
