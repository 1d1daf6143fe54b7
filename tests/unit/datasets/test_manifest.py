"""A manifest says which run an output is, and refuses to be another's."""

from dataclasses import replace

import pytest

from embatch.datasets.manifest import Manifest, PartEntry
from embatch.datasets.source import open_source
from embatch.errors import InputError, InvalidRequestError, NotFoundError
from embatch.types.embedding import Space

SPACE = Space(provider="local", model="m", dims=8, precision="f32", weights_sha256="ab")


@pytest.fixture
def manifest(tmp_path, write_rows):
    """Of a run over one small file."""
    path = write_rows(tmp_path / "a.csv", [{"id": "1", "text": "t", "lang": "en"}])
    source = open_source([str(path)], key="id", keep=["lang"])
    return Manifest.new(run_id="r1", space=SPACE, source=source, created_at=1_700_000_000.5)


def test_a_manifest_comes_back_equal(tmp_path, manifest):
    """As it begins and as it ends."""
    path = tmp_path / "manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest
    part = PartEntry(name="part-00000.parquet", rows=1, sha256="cd", row_min=0, row_max=0)
    done = manifest.completed(
        finished_at=1_700_000_001.0, counts={"rows": 1}, parts=[part], cost={"usd": 0.1}
    )
    done.save(path)
    assert Manifest.load(path) == done
    assert done.difference(manifest) is None
    assert set(done.versions) == {"embatch", "numpy", "pyarrow"}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"space": replace(SPACE, dims=4)}, "dims is 8 here and 4 there"),
        ({"text_column": "body"}, "the text column: 'text' here and 'body' there"),
        ({"key_column": None}, "the key column: 'id' here and none there"),
        ({"keep_columns": ()}, "the kept columns: lang here and none there"),
        ({"inputs": ()}, "1 inputs here and 0 there"),
    ],
)
def test_a_difference_is_named_with_both_values(manifest, change, difference):
    """The first field that differs."""
    assert manifest.difference(replace(manifest, **change)) == difference


def test_a_changed_input_is_a_difference(manifest):
    """Path, size and time count, each by name."""
    [one] = manifest.inputs
    for change, words in [
        ({"path": "/b.csv"}, f"input 1 is {one.path} here and /b.csv there"),
        ({"size_bytes": 1}, f"size_bytes of {one.path} is {one.size_bytes} here and 1 there"),
        ({"mtime_ns": 1}, f"mtime_ns of {one.path} is {one.mtime_ns} here and 1 there"),
    ]:
        assert manifest.difference(replace(manifest, inputs=(replace(one, **change),))) == words


def test_what_does_not_make_another_run_is_no_difference(manifest):
    """Run id, times and counts may differ."""
    other = replace(manifest, run_id="r2", created_at=5.0, journal_id="j2", counts={"rows": 9})
    assert manifest.difference(other) is None


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, NotFoundError),
        (b"{", InputError),
        (b'{"format_version": 99}', InvalidRequestError),
        (b"[]", InvalidRequestError),
        (b'{"format_version": 1}', InputError),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, content, error):
    """Missing, damaged, or of another embatch."""
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match="manifest"):
        Manifest.load(path)
