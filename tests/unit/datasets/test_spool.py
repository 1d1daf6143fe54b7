"""Data without a file becomes one, known by its content."""

import io

import pyarrow as pa
import pytest

from embatch.datasets.source import open_source
from embatch.datasets.spool import spool_data
from embatch.errors import InputError, InvalidRequestError


def rows_of(path, folder, **options):
    source = open_source([str(path)], spool=folder, **options)
    return [row for block in source.read() for row in block.batch.to_pylist()]


def test_texts_are_spooled_in_order(tmp_path):
    """Any iterable, also a generator longer than a block; None is an empty text."""
    texts = [None if i % 7 == 0 else f"t {i} \r\n" for i in range(9_000)]
    path = spool_data(iter(texts), tmp_path)
    rows = rows_of(path, tmp_path)
    assert [row["text"] for row in rows] == texts
    assert rows[-1]["key"] == "8999"


def test_pairs_bring_their_keys(tmp_path):
    """Without naming the key column; integers become strings."""
    path = spool_data([("a", "x"), (7, None)], tmp_path)
    assert rows_of(path, tmp_path) == [{"key": "a", "text": "x"}, {"key": "7", "text": None}]


class Frame:
    """What pandas and polars DataFrames are to embatch: something with an Arrow stream."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: t.to_reader(), Frame])
def test_tables_readers_and_frames_are_taken(tmp_path, wrap):
    """Dictionaries and string views, which frames like, become plain."""
    table = pa.table(
        {
            "id": [1, 2, 3],
            "body": pa.array(["x", "y", "x"]).dictionary_encode(),
            "lang": pa.array(["en", "de", "en"]).cast(pa.string_view()),
        }
    )
    path = spool_data(wrap(table), tmp_path)
    assert rows_of(path, tmp_path, text="body", key="id", keep=["lang"])[1] == {
        "key": "2",
        "text": "y",
        "lang": "de",
    }


def test_the_same_data_is_the_same_input(tmp_path):
    """Known by SHA-256, not by time: a second start with equal data resumes."""
    first = open_source([str(spool_data(["a", "b"], tmp_path))], spool=tmp_path)
    again = open_source([str(spool_data(iter(["a", "b"]), tmp_path))], spool=tmp_path)
    other = open_source([str(spool_data(["a", "c"], tmp_path))], spool=tmp_path)
    assert first.identity == again.identity
    assert first.identity != other.identity
    [identity] = first.identity
    assert identity.mtime_ns is None
    assert len(identity.sha256) == 64
    first.verify_unchanged()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("one text", InvalidRequestError, "data cannot be a str"),
        (5, InvalidRequestError, "data cannot be a int"),
        ([], InputError, "no rows"),
        (["a", 5], InputError, "row 1 of the data is a int"),
        ([("a", "b"), ("c",)], InputError, r"row 1 of the data is no \(key, text\) pair"),
        ([(True, "b")], InputError, r"row 0 of the data is no \(key, text\) pair"),
        (["a", "secret\ud800"], InputError, "row 1 of the data: its text holds half a surrogate"),
    ],
)
def test_data_that_cannot_be_spooled_is_refused(tmp_path, data, error, message):
    """Naming the row, and leaving nothing behind."""
    with pytest.raises(error, match=message) as caught:
        spool_data(data, tmp_path)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_data_is_not_taken_for_the_disks(tmp_path):
    """A generator that reads from elsewhere may fail there."""

    def texts():
        yield "a"
        raise ConnectionError("no route")

    with pytest.raises(InputError, match="the data could not be read to its end: no route"):
        spool_data(texts(), tmp_path)


def test_standard_input_is_spooled_as_jsonl(tmp_path, monkeypatch):
    """`-` is read once; what was read is known by its content and can be read again."""

    class Stdin:
        buffer = io.BytesIO(b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')

    monkeypatch.setattr("sys.stdin", Stdin)
    source = open_source(["-"], key="id", spool=tmp_path)
    for _ in range(2):
        [block] = source.read()
        assert block.batch["key"].to_pylist() == ["1", "2"]
    [file] = tmp_path.iterdir()
    assert file.name.startswith("stdin-")
    assert source.identity[0].sha256
    assert open_source([str(file)], key="id", spool=tmp_path).identity == source.identity


def test_standard_input_can_be_named_once(tmp_path):
    """And needs somewhere to be kept."""
    with pytest.raises(InvalidRequestError, match="once"):
        open_source(["-", "-"], spool=tmp_path)
    with pytest.raises(InvalidRequestError, match="spooled"):
        open_source(["-"])
