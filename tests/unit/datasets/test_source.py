"""Any input becomes the same stream of rows, and what is wrong with it is said with its place."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from embatch.datasets.column_types import KEPT_TEXT
from embatch.datasets.source import Position, Source, open_source
from embatch.errors import InputError, InvalidRequestError

FORMATS = (
    "parquet",
    "arrow",
    "arrows",
    "feather",
    "csv",
    "csv.gz",
    "csv.zst",
    "tsv",
    "tsv.gz",
    "jsonl",
    "ndjson",
    "jsonl.gz",
    "jsonl.zst",
)
TEXTS = [
    "plain",
    " \t spaced \n",
    "two\nlines\r\nand three",
    'quo"ted, comma',
    "e\u0301 is not \u00e9",
    "zero \x00 bell \x07 next line \x85 sep \u2028",
    "\ufeffmark",
    "日本語 😀",
    "007",
    "NA",
]
ROWS = [{"id": f"k{i}", "text": text, "n": str(i)} for i, text in enumerate(TEXTS)]


def rows_of(source: Source, start: Position | None = None, **options: int) -> list[dict]:
    return [row for block in source.read(start, **options) for row in block.batch.to_pylist()]


def opened(path: Path, **options) -> list[dict]:
    return rows_of(open_source([str(path)], **options))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, write_rows, kind):
    """Texts and keys survive untouched, whatever the format."""
    path = write_rows(tmp_path / f"data.{kind}", ROWS)
    rows = opened(path, key="id", keep=["n"])
    assert rows == [{"key": r["id"], "text": r["text"], "n": r["n"]} for r in ROWS]


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "txt.zst"])
def test_a_text_file_has_a_text_a_line(tmp_path, write_rows, kind):
    """Only \\n ends a line; an empty line is an empty text; the row number is the key."""
    texts = ["a", "", " b\x0b\x0c\x1c\x85\u2028 ", "c\rd", "e\r"]
    path = write_rows(tmp_path / f"data.{kind}", [{"text": text} for text in texts])
    assert opened(path) == [{"key": str(i), "text": text} for i, text in enumerate(texts)]


def test_a_text_file_written_with_crlf_loses_its_line_ends_alone(tmp_path):
    """Where the first line ends in CRLF, one carriage return a line belongs to the line end."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\r\n\r\nlast")
    assert [row["text"] for row in opened(tmp_path / "a.txt")] == ["a", "b\r", "", "last"]


def test_empty_texts_are_kept_as_rows(tmp_path, write_rows):
    """Null and "" come through, so that they can be told as failures of their rows."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": None}, {"text": ""}, {"text": "x"}, {"q": 1}])
    assert [row["text"] for row in opened(path)] == [None, "", "x", None]


def test_rows_count_on_over_inputs_in_order(tmp_path, write_rows):
    """Globs are sorted, inputs keep their order, and row numbers go on."""
    for name in ("b2", "b1"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": name}])
    last = write_rows(tmp_path / "a.csv", [{"text": "a"}])
    rows = rows_of(open_source([str(tmp_path / "b*.jsonl"), str(last)]))
    assert rows == [
        {"key": "0", "text": "b1"},
        {"key": "1", "text": "b2"},
        {"key": "2", "text": "a"},
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "feather"])
def test_integer_keys_become_decimal_strings(tmp_path, write_rows, kind):
    """Integers are keys; 2**63-1 is written in full."""
    rows = [{"id": -1, "text": "a"}, {"id": 2**63 - 1, "text": "b"}]
    path = write_rows(tmp_path / f"data.{kind}", rows)
    assert [row["key"] for row in opened(path, key="id")] == ["-1", "9223372036854775807"]


def test_csv_columns_are_read_as_written(tmp_path):
    """Leading zeros, "NA" and booleans are strings."""
    (tmp_path / "a.csv").write_text('id,text,n\n007,"a\nb",true\n010,NA,\n')
    rows = opened(tmp_path / "a.csv", key="id", keep=["n"])
    assert rows == [
        {"key": "007", "text": "a\nb", "n": "true"},
        {"key": "010", "text": "NA", "n": ""},
    ]


def test_a_csv_row_may_be_longer_than_what_is_parsed_at_a_time(tmp_path, write_rows):
    """A text of 9 MB in the middle changes nothing for its neighbours."""
    texts = ["x" * 100] * 50_000 + ["long\n" * 1_800_000] + ["y"] * 3
    path = write_rows(tmp_path / "a.csv", [{"text": text} for text in texts])
    assert [row["text"] for row in opened(path)] == texts


def test_the_only_string_column_is_the_text(tmp_path, write_rows):
    """Without a column `text` the one string column is taken."""
    for kind in ("parquet", "jsonl"):
        path = write_rows(tmp_path / f"a.{kind}", [{"body": "b", "n": 1}])
        assert open_source([str(path)]).text_column == "body"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_two_string_columns_need_a_choice(tmp_path, write_rows, kind):
    """The error lists the columns."""
    path = write_rows(tmp_path / f"a.{kind}", [{"title": "t", "body": "b"}])
    with pytest.raises(InvalidRequestError, match="columns: title, body"):
        open_source([str(path)])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "arrow"])
@pytest.mark.parametrize("options", [{"text": "no"}, {"key": "no"}, {"keep": ["no"]}])
def test_a_missing_column_is_named_and_the_others_listed(tmp_path, write_rows, kind, options):
    """A typing error in any column's name is refused before anything is read."""
    path = write_rows(tmp_path / f"a.{kind}", [{"text": "t", "n": "1"}])
    with pytest.raises(InvalidRequestError, match=r"no column 'no'; columns: text, n"):
        open_source([str(path)], **options)


def test_every_input_must_have_the_columns(tmp_path, write_rows):
    """The second file's missing column names the second file."""
    first = write_rows(tmp_path / "a.jsonl", [{"text": "t", "id": "1"}])
    second = write_rows(tmp_path / "b.parquet", [{"text": "t"}])
    with pytest.raises(InvalidRequestError, match=r"b\.parquet has no column 'id'"):
        open_source([str(first), str(second)], key="id")


@pytest.mark.parametrize("name", ["missing.csv", "missing*.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    """A path or a pattern without a file is the caller's to mend."""
    with pytest.raises(InvalidRequestError, match="missing"):
        open_source([str(tmp_path / name)])


def test_a_path_with_magic_characters_is_a_path_first(tmp_path, write_rows):
    """`a[1].csv` that exists is that file, not a pattern."""
    path = write_rows(tmp_path / "a[1].csv", [{"text": "t"}])
    assert [row["text"] for row in opened(path)] == ["t"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.xlsx", "no known format"), ("a.parquet.gz", "compressed inside"), ("", "is a folder")],
)
def test_what_cannot_be_an_input_is_refused(tmp_path, name, message):
    """Unknown formats and folders say what is taken instead."""
    if name:
        (tmp_path / name).touch()
    with pytest.raises(InvalidRequestError, match=message):
        open_source([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "secret', r"line 3 of .*a\.jsonl is not valid JSON: Unterminated string"),
        (b'["secret"]', r"line 3 of .*a\.jsonl is JSON, but not an object"),
        (b'{"text": "secret\xff"}', r"line 3 of .*a\.jsonl is not UTF-8"),
        (b'{"text": 5}', r"line 3 of .*a\.jsonl, column 'text': the value is a int, not a string"),
        (b'{"text": "secret\\ud800"}', r"line 3 of .*a\.jsonl, column 'text': .*surrogate"),
        (b'{"text": "x", "id": 1.5}', r"line 3 of .*a\.jsonl, column 'id': the value is a float"),
        (b'{"text": "x", "id": true}', r"line 3 of .*a\.jsonl, column 'id': the value is a bool"),
    ],
)
def test_a_broken_json_line_is_named_without_its_text(tmp_path, line, message):
    """File and line number stand in the error; blank lines count as lines, not as rows."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "id": 1}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "a.jsonl", key="id")
    assert "secret" not in str(caught.value)


def test_json_that_python_writes_for_nan_is_read(tmp_path):
    """NaN in another column does not stop the run."""
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n')
    [row] = opened(tmp_path / "a.jsonl", keep=["score"])
    assert row["score"] != row["score"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"text,n\na,1\nsecret\xff,2\n", r"row 3 of .*a\.csv .*is not UTF-8"),
        (b"text,n\na,1\nsecret,2,3\n", r"row 3 of .*a\.csv .*has 3 columns where the header has 2"),
    ],
)
def test_a_broken_csv_row_is_named_without_its_text(tmp_path, data, message):
    """File and row stand in the error; the header is row 1."""
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "a.csv", text="text")
    assert "secret" not in str(caught.value)


def test_a_text_line_that_is_not_utf8_is_named(tmp_path):
    """The line's number stands in the error."""
    (tmp_path / "a.txt").write_bytes(b"a\nb\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"line 3 of .*a\.txt is not UTF-8"):
        opened(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_a_column_with_invalid_utf8_names_its_row(tmp_path, kind):
    """A file may say string and hold other bytes; the row is named."""
    raw = pa.array([b"a", b"b", b"\xff\xfe", b"d"], pa.binary())
    text = pa.StringArray.from_buffers(4, *raw.buffers()[1:])
    table = pa.table({"text": text})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    with pytest.raises(InputError, match=r"row 2 of .*a\..*column 'text'"):
        opened(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv.gz", "csv.zst", "jsonl.gz", "txt.zst"])
def test_a_file_cut_short_is_named(tmp_path, write_rows, kind):
    """Half a file is an error, not half the rows."""
    path = write_rows(tmp_path / f"a.{kind}", [{"text": os.urandom(99).hex()} for _ in range(999)])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"a\.{kind}"):
        opened(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv.gz", "jsonl.zst"])
def test_a_file_of_something_else_is_named(tmp_path, kind):
    """A wrong ending does not crash the reader."""
    (tmp_path / f"a.{kind}").write_bytes(b"this is something else, and long enough for a footer")
    with pytest.raises(InputError, match=rf"a\.{kind}"):
        opened(tmp_path / f"a.{kind}")


def test_a_damaged_parquet_page_is_named(tmp_path, write_rows):
    """What Arrow finds while reading, not only what it finds in the footer."""
    path = write_rows(tmp_path / "a.parquet", [{"text": "x" * 100}] * 100)
    data = bytearray(path.read_bytes())
    data[4:40] = os.urandom(36)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.parquet"):
        opened(path)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "txt", "arrow"])
def test_no_rows_at_all_is_an_error(tmp_path, kind):
    """An input without rows is refused, naming it."""
    path = tmp_path / f"a.{kind}"
    empty = pa.table({"text": pa.array([], pa.string())})
    if kind == "parquet":
        pq.write_table(empty, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), empty.schema):
            pass
    else:
        path.write_bytes(b"text\n" if kind == "csv" else b"")
    with pytest.raises(InputError, match=rf"no rows in .*a\.{kind}"):
        opened(path)


def test_an_empty_file_among_others_is_skipped(tmp_path, write_rows):
    """Empty files have no columns to miss, and no rows."""
    for name in ("a.csv", "a.txt", "a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    last = write_rows(tmp_path / "b.csv", [{"text": "t"}])
    rows = rows_of(open_source([str(tmp_path / "a.*"), str(last)]))
    assert rows == [{"key": "0", "text": "t"}]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "feather"])
def test_a_null_key_is_refused(tmp_path, write_rows, kind):
    """Row, file and column stand in the error."""
    path = write_rows(tmp_path / f"a.{kind}", [{"id": "1", "text": "a"}, {"id": None, "text": "b"}])
    with pytest.raises(InputError, match=r"row 1 .*a\..*no key in column 'id'"):
        opened(path, key="id")


def test_a_key_of_another_type_is_refused(tmp_path, write_rows):
    """Floats are no keys: they do not print the same everywhere."""
    path = write_rows(tmp_path / "a.parquet", [{"id": 1.5, "text": "a"}])
    with pytest.raises(InputError, match=r"a\.parquet: key column 'id' holds double"):
        open_source([str(path)], key="id")


def test_a_text_column_that_holds_no_strings_is_refused(tmp_path, write_rows):
    """Numbers are not turned into texts behind the user's back."""
    path = write_rows(tmp_path / "a.parquet", [{"text": 5}])
    with pytest.raises(InputError, match=r"a\.parquet: column 'text' holds int64"):
        open_source([str(path)])


def test_a_changed_input_is_named(tmp_path, write_rows):
    """verify_unchanged and reading both refuse a file that is not as it was."""
    paths = [write_rows(tmp_path / f"{n}.jsonl", [{"text": n}]) for n in "ab"]
    source = open_source([str(path) for path in paths])
    source.verify_unchanged()
    write_rows(paths[1], [{"text": "longer than before"}])
    with pytest.raises(InputError, match=r"b\.jsonl changed"):
        source.verify_unchanged()
    with pytest.raises(InputError, match=r"b\.jsonl changed"):
        rows_of(source)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"b\.jsonl is gone"):
        source.verify_unchanged()


def test_identity_is_path_size_and_time(tmp_path, write_rows):
    """What a manifest keeps of an input; it comes back from JSON equal."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
    [identity] = open_source([str(path)]).identity
    stat = path.stat()
    assert (identity.path, identity.size_bytes, identity.mtime_ns, identity.sha256) == (
        str(path),
        stat.st_size,
        stat.st_mtime_ns,
        None,
    )
    assert type(identity).from_json(identity.to_json()) == identity


def test_kept_columns_keep_their_types(tmp_path):
    """Numbers, dates, lists and structs of a Parquet file; dictionaries become plain."""
    table = pa.table(
        {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "n": pa.array([1, None], pa.int16()),
            "tags": pa.array([["x"], []]),
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source([str(tmp_path / "a.parquet")], keep=["n", "tags", "kind", "day"])
    assert [str(t) for t in source.schema.types] == [
        "int16",
        "list<element: string>",
        "string",
        "date32[day]",
    ]
    [block] = source.read()
    assert block.batch.select(["n", "tags", "kind", "day"]).schema.types == source.schema.types


def test_kept_json_columns_have_one_type_for_the_whole_file(tmp_path, write_rows):
    """A type is settled by all rows, also those after the first block."""
    early = [{"text": "t", "n": 1, "m": 1, "tags": None, "o": None}] * 9000
    late = [{"text": "t", "n": 2.5, "m": "x", "tags": ["a"], "o": {"p": [1]}}]
    path = write_rows(tmp_path / "a.jsonl", early + late)
    source = open_source([str(path)], keep=["n", "m", "tags", "o"])
    types = dict(zip(source.schema.names, map(str, source.schema.types), strict=True))
    assert types == {"n": "double", "m": "string", "tags": "list<item: string>", "o": "string"}
    rows = rows_of(source)
    assert rows[0] == {"key": "0", "text": "t", "n": 1.0, "m": "1", "tags": None, "o": None}
    assert rows[-1]["m"] == "x"
    assert rows[-1]["tags"] == ["a"]
    assert rows[-1]["o"] == '{"p":[1]}'


def test_kept_columns_of_several_inputs_meet_in_one_type(tmp_path, write_rows):
    """Integers and floats meet as floats; a number and a string do not meet."""
    a = write_rows(tmp_path / "a.parquet", [{"text": "t", "n": 1}])
    b = write_rows(tmp_path / "b.jsonl", [{"text": "t", "n": 1.5}])
    c = write_rows(tmp_path / "c.csv", [{"text": "t", "n": "x"}])
    assert [row["n"] for row in rows_of(open_source([str(a), str(b)], keep=["n"]))] == [1.0, 1.5]
    with pytest.raises(InvalidRequestError, match=r"a\.parquet and .*c\.csv"):
        open_source([str(a), str(c)], keep=["n"])


def test_the_text_itself_can_be_kept(tmp_path, write_rows):
    """A kept `text` travels beside the text that is embedded, be it the same column or not."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "long", "title": "short"}])
    assert opened(path, keep=["text"]) == [{"key": "0", "text": "long", KEPT_TEXT: "long"}]
    rows = opened(path, text="title", keep=["text"])
    assert rows == [{"key": "0", "text": "short", KEPT_TEXT: "long"}]


def test_names_of_the_output_cannot_be_kept(tmp_path, write_rows):
    """A kept column must not hide one of the output's own."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "t", "row": 1}])
    with pytest.raises(InvalidRequestError, match="column 'row' cannot be kept"):
        open_source([str(path)], keep=["row"])


def test_long_texts_come_in_small_blocks(tmp_path):
    """A block holds about 32 MB at most, so that memory does not grow with the texts."""
    table = pa.table({"text": ["x" * 4_000_000] * 30})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    pyarrow.feather.write_feather(table, tmp_path / "b.feather", compression="uncompressed")
    sizes = [block.batch.nbytes for block in open_source([str(tmp_path / "*")]).read()]
    assert max(sizes) < 40_000_000
    assert sum(sizes) > 60 * 4_000_000


def test_reading_stops_the_same_way_at_the_end(tmp_path, write_rows):
    """From the position after the last row there is nothing more to read, and no error."""
    path = write_rows(tmp_path / "a.parquet", ROWS)
    source = open_source([str(path)])
    *_, last = source.read()
    assert list(source.read(last.end)) == []
