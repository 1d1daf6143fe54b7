"""Request rows: valid JSON with the user's text untouched, whatever it holds."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.client.requests import (
    EmbedOptions,
    build_inline,
    build_lines,
    build_vertex_lines,
    spool,
)
from embatch.errors import InvalidRequestError, StorageError
from embatch.types.label import Label, wire_key

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LABEL = Label(display_name="x", tag="0" * 12, rows=1)
MODELS = ["gemini-embedding-001", "gemini-embedding-2", "text-embedding-005", "gemini-embedding-9"]


@given(
    st.lists(TEXTS, min_size=1, max_size=5),
    st.sampled_from(MODELS),
    st.sampled_from([None, "retrieval_query", "RETRIEVAL_DOCUMENT", "clustering"]),
    st.none() | TEXTS,
    st.none() | st.just(256),
)
def test_rows_hold_the_texts_as_they_are(
    texts: list[str], model: str, task: str | None, title: str | None, dims: int | None
) -> None:
    """Every dialect: the key by index, and the text with the model's own prefix around it."""
    if task is None or task.lower() != "retrieval_document":
        title = None
    options = EmbedOptions.of(model, task, dims, title)
    before, after = options.affixes
    for build in (build_lines, build_vertex_lines):
        rows: list[Any] = [orjson.loads(line) for line in build(texts, options, LABEL)]
        assert [row["key"] for row in rows] == [
            wire_key(LABEL.text, index) for index in range(len(texts))
        ]
        for row, text in zip(rows, texts, strict=True):
            flat = (
                row["content"]
                if "content" in row
                else row["request"]["content"]["parts"][0]["text"]
            )
            assert flat == f"{before}{text}{after}"
    inline = orjson.loads(build_inline(texts, options, LABEL, priority=-3) or b"")
    assert inline["batch"]["priority"] == "-3"
    listed = inline["batch"]["inputConfig"]["requests"]["requests"]
    file_rows = [orjson.loads(line) for line in build_lines(texts, options, LABEL)]
    assert [one["request"] for one in listed] == [row["request"] for row in file_rows]
    assert [one["metadata"] for one in listed] == [{"key": row["key"]} for row in file_rows]


def test_dialect_of_gemini_models_on_vertex() -> None:
    """Snake case, in a config inside the request."""
    options = EmbedOptions.of("gemini-embedding-001", "retrieval_document", 768, "T")
    (line,) = build_vertex_lines(["a"], options, LABEL)
    assert orjson.loads(line)["request"]["embed_content_config"] == {
        "output_dimensionality": 768,
        "task_type": "RETRIEVAL_DOCUMENT",
        "title": "T",
    }


def test_second_models_get_no_task_parameter() -> None:
    """Where the task stands in the text, no parameter is sent that would be ignored."""
    options = EmbedOptions.of("gemini-embedding-2", "retrieval_document", 768, "T")
    (line,) = build_lines(["a"], options, LABEL)
    request = orjson.loads(line)["request"]
    assert set(request) == {"content", "outputDimensionality"}
    assert request["content"]["parts"][0]["text"] == "title: T | text: a"
    assert options.template == "title: T | text: {text}"


def test_half_surrogates_are_named_by_place() -> None:
    """A text that no UTF-8 can carry is refused; the text itself is not shown."""
    options = EmbedOptions.of("gemini-embedding-001", None, None, None)
    with pytest.raises(InvalidRequestError, match=r"texts\[1\]") as caught:
        list(build_lines(["a", "canary \ud800"], options, LABEL))
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("task", ["", "nonsense", "RETRIEVAL"])
def test_unknown_tasks_list_the_known(task: str) -> None:
    """The error lists the words."""
    with pytest.raises(InvalidRequestError, match="retrieval_document"):
        EmbedOptions.of("gemini-embedding-001", task, None, None)


def test_rows_that_the_disk_does_not_take() -> None:
    """A full disk is an error that names the folder and what to do."""
    with pytest.raises(StorageError, match="/dev: No space left"):
        spool(iter([b"row"]), Path("/dev/full"))
