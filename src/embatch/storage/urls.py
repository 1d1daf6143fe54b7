"""URLs of objects and of the folders that their names make: `s3://bucket/path`."""

import os
import re
from typing import Final

from embatch.errors import InvalidRequestError

SCHEMES: Final = ("s3", "gs", "az")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,2})([^/].*)", re.DOTALL)
"""One slash too, of the stores that are known: `pathlib.Path("s3://bucket")` has one."""
_ALSO: Final = {"s3a": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az"}
_WRITTEN: Final = "s3://bucket/path, gs://bucket/path or az://container/path"


def parse_url(place: str | os.PathLike[str]) -> str | None:
    """The URL that `place` is, without a slash at its end; None for a path of this machine.

    InvalidRequestError for a URL of a store that embatch does not know.
    """
    found = _URL.fullmatch(os.fspath(place))
    if found is None:
        return None
    scheme, rest = found[1].lower(), found[3].rstrip("/")
    if scheme not in SCHEMES:
        if found[2] == "/":
            return None
        meant = _ALSO.get(scheme)
        hint = f" (here it is written {meant}://)" if meant else ""
        raise InvalidRequestError(
            f"{scheme}:// is no place that embatch knows{hint}: give a path, {_WRITTEN}"
        )
    if any(step in ("", ".", "..") for step in rest.split("/")):
        raise InvalidRequestError(f"{scheme}://{rest} has an empty, . or .. step: write it without")
    return f"{scheme}://{rest}"


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of an object's URL; InvalidRequestError for anything else."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        raise InvalidRequestError(f"{url} is no place in an object store: write {_WRITTEN}")
    return scheme, bucket, path.strip("/")
