"""The cutter gives every row once, and an envelope without them, however the bytes arrive."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.client.cutter import DocumentCutter

STRINGS = st.text() | st.sampled_from(
    ['"values": [', '"inlinedResponses": [', "\\", '\\"', "}]}", "{[", 'a"values"', "values"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "metadata": st.dictionaries(
                STRINGS, STRINGS | st.lists(STRINGS, max_size=2), max_size=2
            ),
            "response": st.fixed_dictionaries(
                {
                    "embedding": st.fixed_dictionaries(
                        {"values": st.lists(st.floats(-1, 1) | st.none(), max_size=4)}
                    )
                }
            )
            | st.fixed_dictionaries({"error": st.fixed_dictionaries({"message": STRINGS})}),
        }
    ),
    max_size=4,
)


def _cut(data: bytes, size: int) -> tuple[list[Any], Any]:
    cutter = DocumentCutter()
    rows = [
        json.loads(row)
        for start in range(0, len(data), size)
        for row in cutter.feed(data[start : start + size])
    ]
    return rows, json.loads(cutter.envelope())


@settings(max_examples=300)
@given(
    ROWS,
    STRINGS,
    st.integers(1, 40),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.sampled_from(["both", "metadata", "response"]),
)
def test_rows_and_envelope(
    rows: list[Any], name: str, size: int, indent: int | None, response_first: bool, place: str
) -> None:
    """Whatever the texts, the layout, the order of the two lists and the size of the pieces."""
    listed = {"inlinedResponses": {"inlinedResponses": rows}}
    metadata: dict[str, Any] = {"displayName": name, "state": "BATCH_STATE_SUCCEEDED"}
    if place != "response":
        metadata["output"] = listed
    document: dict[str, Any] = {"name": "batches/x", "metadata": metadata, "done": True}
    if place != "metadata":
        document["response"] = listed
    if response_first:
        document = dict(reversed(document.items()))
    found, envelope = _cut(json.dumps(document, indent=indent).encode(), size)
    assert found == rows
    assert envelope["metadata"]["displayName"] == name
    assert envelope["done"] is True
    for holder in (envelope.get("response"), envelope["metadata"].get("output")):
        assert holder in (None, {"inlinedResponses": {"inlinedResponses": []}})


@given(
    st.recursive(
        STRINGS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(STRINGS, inner)
    )
)
def test_other_documents_pass_unchanged(value: Any) -> None:
    """A document without rows is its own envelope."""
    found, envelope = _cut(json.dumps({"a": value}).encode(), 7)
    if not found:
        assert envelope == {"a": value} or "inlinedResponses" in json.dumps(value)
