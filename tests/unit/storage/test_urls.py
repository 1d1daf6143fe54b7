"""What a place is called."""

from pathlib import Path

import pytest

from embatch.errors import InvalidRequestError
from embatch.storage.places import ObjectPlace, absolute, named, parse_place
from embatch.storage.urls import parse_url, split_url


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("GS://bucket", "gs://bucket"),
        (Path("s3://bucket/x.parquet"), "s3://bucket/x.parquet"),
        ("az:/container/x", "az://container/x"),
        ("s3://bucket/in/**/*.parquet", "s3://bucket/in/**/*.parquet"),
        ("folder/x", None),
        ("/a/b:c/d", None),
        ("-", None),
        ("notes:/x", None),
    ],
)
def test_a_place_is_a_url_or_a_path(given: str | Path, url: str | None) -> None:
    """Paths that pathlib made of URLs are URLs too."""
    assert parse_url(given) == url
    place = parse_place(given)
    assert isinstance(place, Path) == (url is None)
    assert absolute(given) == (url or str(Path(given).absolute()))
    assert str(named(str(given))) == (url or str(given))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.org/x.csv", "https:// is no place"),
        ("s3a://bucket/x", "written s3://"),
        ("s3://bucket//x", "empty"),
        ("s3://bucket/../x", r"\.\."),
    ],
)
def test_a_url_that_is_no_place_is_refused(url: str, says: str) -> None:
    """With how it is written."""
    with pytest.raises(InvalidRequestError, match=says):
        parse_url(url)


def test_an_object_place_speaks_as_a_path_does() -> None:
    """Names, suffixes, neighbours."""
    place = parse_place("s3://bucket/out/x.keys.parquet")
    path = Path("/bucket/out/x.keys.parquet")
    assert isinstance(place, ObjectPlace)
    assert (place.name, place.stem, place.suffix) == (path.name, path.stem, path.suffix)
    assert place.suffixes == path.suffixes
    assert str(place.parent / "y") == "s3://bucket/out/y"
    assert str(place.with_suffix("").with_suffix(".npy")) == "s3://bucket/out/x.npy"
    assert split_url(str(place)) == ("s3", "bucket", "out/x.keys.parquet")
    with pytest.raises(InvalidRequestError, match="no file of this machine"):
        open(place).close()  # noqa: PTH123 - a path is what it must not pass for
