"""Rows of batches and interactive requests: what is taken, what is refused, what comes back."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.server.wire import ApiError
from embatch.server.wire_rows import (
    RowRules,
    read_content,
    read_countable,
    read_file_row,
    read_inline_row,
    read_many,
    read_request,
)
from embatch.types.task import TaskType

RULES = RowRules(model="gemini-embedding-001", dims=384)
CONTENT = {"parts": [{"text": "a secret text"}]}


def test_a_request_is_read_in_either_spelling() -> None:
    """Top-level fields win over embedContentConfig."""
    for request in (
        {"content": CONTENT, "taskType": "CLUSTERING", "outputDimensionality": 8},
        {"content": CONTENT, "task_type": "CLUSTERING", "output_dimensionality": "8"},
        {"content": CONTENT, "task_type": "clustering", "output_dimensionality": 8},
        {
            "content": CONTENT,
            "outputDimensionality": 8,
            "embed_content_config": {"task_type": "CLUSTERING", "outputDimensionality": 9},
        },
        {"model": "models/gemini-embedding-001", "content": CONTENT, "task_type": "CLUSTERING",
         "embedContentConfig": {"outputDimensionality": 8}},
    ):  # fmt: skip
        read = read_request(request, RULES)
        assert (read.text, read.dims, read.task_type) == (
            "a secret text",
            8,
            TaskType.CLUSTERING,
        )


def test_the_models_own_dims_are_the_default() -> None:
    """Nothing said: the full vector, no task."""
    read = read_request({"content": CONTENT}, RULES)
    assert (read.dims, read.task_type) == (384, None)


def test_parts_are_one_text() -> None:
    """Several parts make one text, as they make one vector."""
    assert read_content({"parts": [{"text": "a"}, {"text": "b"}]}) == "a\nb"
    assert read_content({"role": "user", "parts": {"text": "a"}}) == "a"
    assert read_content({"parts": [{"text": ""}]}) == ""
    assert read_content("a") == "a"


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({}, "content"),
        ({"content": {}}, "content.parts"),
        ({"content": {"parts": [{"inlineData": {"data": "x"}}]}}, "text only"),
        ({"content": {"parts": [{"text": 5}]}}, "content.parts.text"),
        ({"content": {"parts": "x"}}, "parts"),
        ({"content": CONTENT, "outputDimensionality": 0}, "between 1 and 384"),
        ({"content": CONTENT, "outputDimensionality": 385}, "between 1 and 384"),
        ({"content": CONTENT, "outputDimensionality": "x"}, "output_dimensionality"),
        ({"content": CONTENT, "taskType": "DANCING"}, "task_type"),
        ({"content": CONTENT, "taskType": "CLUSTERING", "title": "t"}, "title"),
        ({"content": CONTENT, "model": "models/another"}, "model"),
    ],
)
def test_a_wrong_request_is_refused(request_: dict[str, Any], named: str) -> None:
    """400 names the field and shows no text."""
    with pytest.raises(ApiError, match=named) as refused:
        read_request(request_, RULES)
    assert "secret" not in refused.value.message


def test_key_and_metadata_come_back_verbatim() -> None:
    """Any JSON type, of file rows; of inline rows metadata alone."""
    row = {
        "metadata": {"n": [1, 2.5, None, True, 10**30], "é": "\x00"},
        "key": {"any": "type"},
        "request": {"content": CONTENT},
    }
    line = orjson.dumps({**row, "metadata": 0}).replace(
        b'"metadata":0',
        b'"metadata":{"n":[1,2.5,null,true,1%b],"\xc3\xa9":"\\u0000"}' % (b"0" * 30),
    )
    echo = read_file_row(line, RULES).echo
    assert b"1" + b"0" * 30 in echo
    assert b'"key":{"any":"type"}' in echo
    inline = read_inline_row(row, RULES).echo
    assert inline.startswith(b'"metadata":{"n":[1,2.5,null,true,1000')
    assert b"key" not in inline


def test_nothing_comes_back_of_rows_without_keys() -> None:
    """No key in, no key out."""
    assert read_file_row(orjson.dumps({"request": {"content": CONTENT}}), RULES).echo == b""


@pytest.mark.parametrize(
    "line", [b"{}", b'{"content":{"parts":[{"text":"x"}]}}', b"[]", b"5", b'{"request":"x"}']
)
def test_a_row_needs_a_request(line: bytes) -> None:
    """The words of the real service."""
    with pytest.raises(ApiError, match="No request specified"):
        read_file_row(line, RULES)


@given(
    st.binary()
    | st.builds(
        lambda key, text, dims: orjson.dumps(
            {"key": key, "request": {"content": {"parts": [{"text": text}]}, "dims": dims}}
        ),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.integers(-5, 5),
    )
)
def test_any_line_is_a_row_or_refused(line: bytes) -> None:
    """Nothing but ApiError 400 comes of a bad line; the echo of a good one is JSON."""
    refused: ApiError | None = None
    try:
        row = read_file_row(line, RULES)
    except ApiError as error:
        refused = error
    if refused is not None:
        assert refused.code == 400
    else:
        echoed = orjson.loads(b"{" + row.echo + b"}")
        assert echoed["key"] == orjson.loads(line)["key"]


def test_at_most_a_hundred_at_once() -> None:
    """The words of the real service, line end and all."""
    body = {"requests": [{"content": CONTENT}] * 101}
    with pytest.raises(ApiError) as refused:
        read_many(body, RULES, most=100)
    assert refused.value.message == (
        "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n"
    )
    assert len(read_many({"requests": [{"content": CONTENT}] * 100}, RULES, most=100)) == 100
    with pytest.raises(ApiError, match="not specified"):
        read_many({}, RULES, most=100)


def test_contents_to_count_stand_in_two_places() -> None:
    """contents, else generateContentRequest.contents."""
    assert read_countable({"contents": [CONTENT]}) == ["a secret text"]
    assert read_countable({"generate_content_request": {"contents": [CONTENT]}}) == [
        "a secret text"
    ]
    with pytest.raises(ApiError, match="contents"):
        read_countable({})


def test_too_many_dimensions_get_a_way_out() -> None:
    """Programs written for larger models learn what to do."""
    with pytest.raises(ApiError, match=r"between 1 and 384.* leave it out.* --model"):
        read_request({"content": CONTENT, "outputDimensionality": 768}, RULES)
