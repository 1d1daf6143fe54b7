"""Fields, numbers, pages and errors as all calls read and write them."""

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.server.wire import (
    ApiError,
    api_key_invalid,
    build_page_token,
    dump_json,
    field_of,
    integer_of,
    load_json,
    message_of,
    messages_of,
    page_size,
    parse_json,
    parse_page_token,
    text_of,
    timestamp,
    too_many_batches,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcD_é\0\""), inner),
    max_leaves=20,
)  # fmt: skip


def test_fields_go_by_either_name() -> None:
    """camelCase and snake_case name one field; null counts as absent."""
    assert field_of({"outputDimensionality": 1}, "outputDimensionality") == 1
    assert field_of({"output_dimensionality": 2}, "outputDimensionality") == 2
    assert field_of({"fileName": None, "file_name": "x"}, "fileName") == "x"
    assert field_of({"fileName": None}, "fileName") is None


@pytest.mark.parametrize("value", [7, "7", 7.0, "+7"])
def test_integers_come_as_numbers_and_strings(value: object) -> None:
    """Both spellings of an int64."""
    assert integer_of({"priority": value}, "priority") == 7


@pytest.mark.parametrize(
    "value", [True, 1.5, "x", "", " 7", "\u0667", [], {}, 2**63, str(2**63), "1e3"]
)
def test_what_is_no_integer_is_refused(value: object) -> None:
    """400, naming the field in snake_case."""
    with pytest.raises(ApiError, match="output_dimensionality") as refused:
        integer_of({"outputDimensionality": value}, "outputDimensionality")
    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("value", [1, "x", ["x"], True])
def test_messages_are_objects(value: object) -> None:
    """What is no message is refused, in a list too."""
    with pytest.raises(ApiError):
        message_of({"batch": value}, "batch")
    with pytest.raises(ApiError):
        messages_of({"requests": value}, "requests")


def test_a_string_is_a_string() -> None:
    """No number is taken for a name."""
    with pytest.raises(ApiError):
        text_of({"displayName": 5}, "displayName")
    assert text_of({"display_name": "é"}, "displayName") == "é"


@given(json_values)
def test_json_comes_back_as_it_went(value: object) -> None:
    """Integers of any size, floats, any text, any shape."""
    raw = dump_json(value)
    assert load_json(raw) == value


@given(st.binary(max_size=60) | st.text().map(str.encode))
def test_any_body_is_a_message_or_refused(raw: bytes) -> None:
    """A dict comes, or ApiError 400 without a word of the body."""
    refused: ApiError | None = None
    try:
        assert isinstance(parse_json(raw), dict)
    except ApiError as error:
        refused = error
    assert refused is None or (refused.code == 400 and "payload" in refused.message)


@pytest.mark.parametrize("depth", [200, 500, 900, 5000])
def test_deep_nesting_is_no_failure(depth: int) -> None:
    """It is written back, or refused."""
    refused: ApiError | None = None
    try:
        value = parse_json(b'{"a":' * depth + b"1" + b"}" * depth)
        assert dump_json(value).count(b"{") == depth
    except ApiError as error:
        refused = error
    assert refused is None or refused.code == 400


@given(st.integers(0, 10**18 - 1))
def test_page_tokens(seq: int) -> None:
    """What was given comes back."""
    assert parse_page_token({"pageToken": build_page_token(seq)}) == seq
    assert parse_page_token({"page_token": build_page_token(seq)}) == seq


@pytest.mark.parametrize("token", ["x", "p", "p-1", "p1 ", "p" + "9" * 19, "p\u0667"])
def test_foreign_page_tokens_are_refused(token: str) -> None:
    """400."""
    with pytest.raises(ApiError, match="page token"):
        parse_page_token({"pageToken": token})


def test_page_sizes() -> None:
    """Zero and nothing mean the default; too much means the most."""
    assert page_size({}, default=10, most=100) == 10
    assert page_size({"pageSize": "0"}, default=10, most=100) == 10
    assert page_size({"page_size": "3"}, default=10, most=100) == 3
    assert page_size({"pageSize": "5000"}, default=10, most=100) == 100
    for wrong in ("-1", "x", "1.5", "9" * 30):
        with pytest.raises(ApiError):
            page_size({"pageSize": wrong}, default=10, most=100)


def test_errors_have_the_shape_of_google_rpc() -> None:
    """A wrong key bears ErrorInfo; too many batches a Help detail and no hint when to come back."""
    error = orjson.loads(api_key_invalid().body())["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["details"][0]["reason"] == "API_KEY_INVALID"
    error = orjson.loads(too_many_batches(3).body())["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert [one["@type"].rsplit(".", 1)[-1] for one in error["details"]] == ["Help"]


def test_times_are_utc() -> None:
    """RFC 3339 with Z."""
    assert timestamp(datetime(2026, 11, 1, 10, 0, 0, 5, UTC)) == "2026-11-01T10:00:00.000005Z"
