"""Result rows of every dialect become keys, float32 and named errors."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.client import results
from embatch.client.results import BLOCK_BYTES, Tally, read_blocks, text_key
from embatch.types.results import ResultBlock


def _line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _good(key: str | None = "a", values: Any = (1, 2)) -> dict[str, Any]:
    row: dict[str, Any] = {"response": {"embedding": {"values": list(values)}}}
    return row if key is None else {"key": key, **row}


def _only(data: bytes, **asked: Any) -> ResultBlock:
    (block,) = read_blocks([data], **asked)
    return block


@pytest.fixture(params=["simdjson", "orjson"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pysimdjson, and on a Python that has no wheel of it."""
    if request.param == "orjson":
        monkeypatch.setattr(results, "simdjson", None)


@pytest.mark.parametrize(
    ("row", "key", "tokens"),
    [
        (_good(), "a", None),
        ({**_good(None), "metadata": {"key": "m"}}, "m", None),
        ({**_good(None), "metadata": None}, "", None),
        ({**_good("k"), "request": {"content": {"parts": [{"text": 'x"'}]}}}, "k", None),
        (
            {
                "key": "u",
                "response": {
                    "embedding": {"values": [1, 2]},
                    "usageMetadata": {"promptTokenCount": 9},
                },
            },
            "u",
            9,
        ),
        (
            {"key": "t", "response": {"embedding": {"values": [1.0, 2.0]}, "tokenCount": "3"}},
            "t",
            3,
        ),
        (
            {
                "instance": {"content": "hello"},
                "predictions": [
                    {
                        "embeddings": {
                            "statistics": {"token_count": 2, "truncated": False},
                            "values": [1, 2],
                        }
                    }
                ],
                "status": "",
            },
            text_key("hello"),
            2,
        ),
    ],
)
def test_dialects(row: dict[str, Any], key: str, tokens: int | None) -> None:
    """Each service's row gives its key, its vector and what was billed."""
    block = _only(_line(**row))
    assert list(block.keys) == [key]
    assert block.vectors.tolist() == [[1.0, 2.0]]
    assert (None if block.tokens is None else block.tokens.tolist()) == (
        None if tokens is None else [tokens]
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (_line(key="a", error={"code": 3, "message": "content is empty"}), "invalid_argument"),
        (_line(key="a", error={"code": 1}), "cancelled"),
        (_line(key="a", error={"code": "14"}), "unavailable"),
        (_line(key="a", response={"error": {"code": 8}}), "resource_exhausted"),
        (_line(key="a", status="INVALID_ARGUMENT: why"), "invalid_argument"),
        (_line(key="a", status="odd words"), "unknown"),
        (_line(key="a"), "no_vector"),
        (_line(key="a", response=None), "no_vector"),
        (_line(key="a", response={"embedding": {"values": []}}), "no_vector"),
        (_line(**_good(values=[1, None])), "not_finite"),
        (_line(**_good(values=[1, "NaN"])), "not_finite"),
        (_line(**_good(values=[1, True])), "not_finite"),
        (b'{"key":"a","response":{"embedding":{"values":[1,NaN]}}}\n', "not_finite"),
        (b'{"key":"a","response":{"embedding":{"values":[1,1e400]}}}\n', "not_finite"),
        (_line(**_good(values=[1, 1e39])), "not_finite"),
        (_line(**_good(values=[1])), "wrong_dims"),
        (_line(**_good(values=[1, 2, 3])), "wrong_dims"),
    ],
)
def test_bad_rows_are_named(line: bytes, code: str) -> None:
    """A bad row is an error under its key, between good rows."""
    block = _only(_line(**_good("x")) + line + _line(**_good("y")), dims=2)
    assert list(block.keys) == ["x", "y"]
    assert [(key, error.code) for key, error in block.errors] == [("a", code)]


_BOTH = {"embedding": {"values": [1, 2]}}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"error": {"code": 13}, "response": _BOTH}, "internal"),
        ({"error": {}, "response": _BOTH}, "unknown"),
        ({"error": "INTERNAL: why", "response": _BOTH}, "internal"),
        ({"response": {**_BOTH, "error": {"code": 8}}}, "resource_exhausted"),
        ({"response": _BOTH, "status": "UNAVAILABLE: why"}, "unavailable"),
        ({"response": _BOTH, "status": {"code": 14}}, "unavailable"),
        (
            {"predictions": [{"embeddings": {"values": [1, 2]}}], "error": {"code": 1}},
            "cancelled",
        ),
    ],
)
def test_an_error_outweighs_a_vector(row: dict[str, Any], code: str) -> None:
    """A row that bears an error is an error row, whatever else it holds."""
    for fields in (row, dict(reversed(row.items()))):
        block = _only(_line(**_good("x")) + _line(key="a", **fields), dims=2)
        assert list(block.keys) == ["x"]
        assert [(key, error.code) for key, error in block.errors] == [("a", code)]


@pytest.mark.parametrize("empty", [{"error": None}, {"error": ""}, {"status": ""}, {"status": {}}])
def test_empty_errors_are_none(empty: dict[str, Any]) -> None:
    """A field for errors that says nothing leaves the vector its place."""
    block = _only(_line(**_good("a"), **empty))
    assert list(block.keys) == ["a"]
    assert block.vectors.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("values", [[[1, 2]], [[1], [2, 3]], [[1, 2], []], [[[1]], [2, 3]]])
def test_lists_within_the_list_are_no_vector(values: Any) -> None:
    """Nested numbers are not strung together to one vector."""
    block = _only(_line(**_good("x")) + _line(**_good("a", values)), dims=2)
    assert list(block.keys) == ["x"]
    assert [(key, error.code) for key, error in block.errors] == [("a", "not_finite")]


def test_blocks_are_bounded_in_bytes() -> None:
    """Long vectors come in fewer rows a block, one at least, and none is lost between blocks."""
    dims = BLOCK_BYTES // 4 // 3
    data = b"".join(orjson.dumps(_good(f"k{i}", [i] * dims)) + b"\n" for i in range(7))
    blocks = list(read_blocks([data]))
    assert [len(block.keys) for block in blocks] == [3, 3, 1]
    assert [block.vectors[-1, -1] for block in blocks] == [2, 5, 6]
    (wide,) = read_blocks([orjson.dumps(_good("w", [1] * (BLOCK_BYTES // 4 + 1)))])
    assert wide.vectors.shape == (1, BLOCK_BYTES // 4 + 1)


_ROWS = st.sampled_from(
    [
        _good(values=[1, 2]),
        _good(values=[1]),
        _good(values=[1, 2, 3]),
        _good(values=[]),
        _good(values=[1, 1e39]),
        _good(values=[1, None]),
        {"key": "a", "response": {"embedding": None}},
        {"key": "a", "response": {}},
        {"key": "a", "error": {"code": 3}},
        {"key": "a", "error": {"code": 3}, "response": _BOTH},
        {"metadata": {"values": [1, 2]}},
    ]
)


@given(st.lists(_ROWS, min_size=1, max_size=12), st.none() | st.just(2))
def test_counts_are_what_reading_says(rows: list[dict[str, Any]], dims: int | None) -> None:
    """A row counts as good exactly if reading gives its vector."""
    lines = [json.dumps(row).encode() for row in rows]
    tally = Tally()
    for line in lines:
        tally.add(line)
    blocks = list(read_blocks([line + b"\n" for line in lines], dims=dims))
    assert tally.rows == len(rows)
    assert tally.good(dims) == sum(len(block.keys) for block in blocks)


@pytest.mark.parametrize("line", [b"{", b"3\n", b'{"key":"a","resp\n', b"\xff\xfe\n"])
def test_lines_that_are_no_rows(line: bytes) -> None:
    """A line that cannot be read has no key, and spoils no other."""
    block = _only(_line(**_good("x")) + line, dims=2)
    assert list(block.keys) == ["x"]
    assert [(key, error.code) for key, error in block.errors] == [("", "unreadable")]


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 200),
    st.integers(1, 8),
)
def test_floats_round_trip_bit_by_bit(rows: list[list[float]], piece: int, block_rows: int) -> None:
    """Whatever the pieces and the blocks, every float32 comes back as it was written."""
    data = b"".join(orjson.dumps(_good(f"k{i}", row)) + b"\n" for i, row in enumerate(rows)).rstrip(
        b"\n"
    )
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    blocks = list(read_blocks(pieces, block_rows=block_rows))
    assert [key for block in blocks for key in block.keys] == [f"k{i}" for i in range(len(rows))]
    found = np.concatenate([block.vectors for block in blocks])
    assert found.tobytes() == np.array(rows, dtype=np.float32).tobytes()
    assert all(len(block.keys) <= block_rows for block in blocks)


def test_nothing_gives_nothing() -> None:
    """An empty file has no blocks; blank lines are none."""
    assert list(read_blocks([])) == []
    assert list(read_blocks([b"\n \n"])) == []
