"""The body that makes a batch reads the same, whichever way its rows are read."""

import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.server import wire_create
from embatch.server.intake import file_rows, inline_rows
from embatch.server.wire import ApiError, parse_json
from embatch.server.wire_create import Rows, read_create
from embatch.server.wire_rows import RowRules

from .test_wire import json_values


def plain(value: Any) -> Any:
    """The value with its rows as a list."""
    if isinstance(value, Rows):
        return list(value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """Bodies that go more or less far down the way to the rows."""
    value: Any = draw(st.lists(json_values, max_size=3) | json_values)
    for names in (["requests"], ["requests"], ["inputConfig", "input_config"], ["batch"]):
        if draw(st.integers(0, 9)) == 0:
            return value
        others = draw(
            st.dictionaries(st.sampled_from(["model", "x", "", "\0", "é\n"]), json_values)
        )
        value = {**others, draw(st.sampled_from(names)): value}
    return value


@given(bodies())
def test_it_reads_what_a_plain_reader_reads(value: Any) -> None:
    """Down to numbers of any size; what is no message is refused by both."""
    raw = json.dumps(value).encode()
    if isinstance(value, dict):
        assert plain(read_create(raw)) == parse_json(raw)
    else:
        with pytest.raises(ApiError):
            read_create(raw)


def test_of_a_field_that_stands_twice_the_last_one_counts() -> None:
    """As with the plain reader."""
    raw = b'{"batch":{"priority":1,"priority":2},"batch":{"priority":3,"priority":4}}'
    assert read_create(raw) == {"batch": {"priority": 4}}


def test_rows_are_read_one_by_one() -> None:
    """They are no list, unless this Python has no other reader."""
    body = orjson.dumps({"batch": {"input_config": {"requests": {"requests": [{"a": 1}, 2]}}}})
    rows = read_create(body)["batch"]["input_config"]["requests"]["requests"]
    assert list(rows) == [{"a": 1}, 2]
    assert isinstance(rows, list if wire_create.simdjson is None else Rows)


@pytest.mark.parametrize("raw", [b"[]", b"5", b"{", b"\xff", b'{"a":"\\ud800"}', b'{"a":1e400}'])
def test_broken_bodies_are_refused(raw: bytes) -> None:
    """400."""
    with pytest.raises(ApiError) as refused:
        read_create(raw)
    assert refused.value.code == 400


def test_without_the_fast_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pythons that have no wheel of it read the whole body at once."""
    monkeypatch.setattr(wire_create, "simdjson", None)
    assert read_create(b'{"batch":{"displayName":"d"}}') == {"batch": {"displayName": "d"}}
    assert read_create(b" ") == {}


def test_a_byte_order_mark_is_skipped(tmp_path: Any) -> None:
    """Editors write it before the first line; anywhere else it is no JSON."""
    rules = RowRules(model="m", dims=4)
    line = b'{"request":{"content":"a"}}\n'
    path = tmp_path / "rows"
    path.write_bytes(b"\xef\xbb\xbf" + line + line)
    with path.open("rb") as file:
        assert len(list(file_rows(file, rules, 1000))) == 2
    path.write_bytes(line + b"\xef\xbb\xbf" + line)
    with path.open("rb") as file, pytest.raises(ApiError, match="line 2"):
        list(file_rows(file, rules, 1000))


@pytest.mark.parametrize("read", [read_create, parse_json])
def test_a_byte_order_mark_before_a_body_is_skipped(read: Any) -> None:
    """As before a file; one alone is an empty body."""
    assert read(b'\xef\xbb\xbf{"a":1}') == {"a": 1}
    assert read(b"\xef\xbb\xbf") == {}


def test_rows_that_are_no_list_are_refused() -> None:
    """400 says where."""
    with pytest.raises(ApiError, match=r"requests\.requests"):
        list(inline_rows({"a": 1}, RowRules(model="m", dims=4)))


EMPTIES = b"[" + b"[]," * 400_000 + b"[]]"
"""A little over a megabyte that becomes half a million objects."""


@pytest.mark.skipif(wire_create.simdjson is None, reason="the whole body is read at once")
@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":%b}' % EMPTIES,
        b'{"batch":{"x":%b}}' % EMPTIES,
        b'{"batch":{"inputConfig":{"requests":{"requests":[{"x":%b}]}}}}' % EMPTIES,
        b'{"x":1,"x":[%b]}' % b",".join([EMPTIES] * 3),
    ],
)
def test_empty_things_become_no_objects(raw: bytes) -> None:
    """Wherever they stand in the body."""
    with pytest.raises(ApiError, match=r"longer than 1048576 bytes|too many messages") as refused:
        list(read_create(raw)["batch"]["inputConfig"]["requests"]["requests"])
    assert refused.value.code == 400


def test_a_line_has_a_limit_of_its_own() -> None:
    """However large a body may be."""
    with pytest.raises(ApiError, match="line 1: longer than 1048576 bytes"):
        list(file_rows(io.BytesIO(b'{"x":%b}' % EMPTIES), RowRules(model="m", dims=4), 20_000_000))
