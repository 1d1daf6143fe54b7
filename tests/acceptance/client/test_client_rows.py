"""Batches of request rows that the caller wrote to a file, and what becomes of such files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embatch.errors import NotFoundError
from embatch.testing.cloud import expected_vectors

TEXTS = [f"text {i}" for i in range(7)]


def _rows(case: Any, texts: list[str]) -> list[str]:
    return [
        json.dumps({"key": f"mine-{i}", "request": {"content": {"parts": [{"text": text}]}}})
        for i, text in enumerate(texts)
    ]


def test_files_of_rows_become_batches(case: Any, jsonl: Callable[..., Path]) -> None:
    """A file of the service's own rows is submitted as it is; its results come in file order."""
    path = jsonl(_rows(case, TEXTS))
    made = case.client.create_batch_from_file(path, display_name="mine")
    case.cloud.finish(made.name)
    found = case.client.get_batch_embeddings(made.name)
    assert made.display_name == "mine"
    assert not found.aligned
    assert list(found.keys) == [f"mine-{i}" for i in range(len(TEXTS))]
    np.testing.assert_array_equal(found.to_numpy(), expected_vectors(TEXTS))


def test_uploaded_files_become_batches(case: Any, jsonl: Callable[..., Path]) -> None:
    """A file that is at the service already is not uploaded again; a unique name goes as it is."""
    remote = case.client.upload_file(jsonl(_rows(case, TEXTS)))
    made = case.client.create_batch_from_file(
        remote.name, display_name="run-7/batch-3", unique_name=True
    )
    assert made.label == made.display_name == "run-7/batch-3"
    case.cloud.finish(made.name)
    assert len(case.client.get_batch_embeddings(made.name)) == len(TEXTS)


@pytest.mark.parametrize("kind_of_path", [str, Path])
def test_a_local_folder_may_be_called_files(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind_of_path: Any
) -> None:
    """files/rows.jsonl is a path on this machine: the service's own names hold no dot."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "rows.jsonl").write_text("\n".join(_rows(case, TEXTS)) + "\n")
    monkeypatch.chdir(tmp_path)
    path = kind_of_path("files/rows.jsonl")
    made = case.client.create_batch_from_file(path=path, display_name="x")
    assert made.batch_stats.request_count in (0, len(TEXTS))
    assert len(case.cloud.jobs()) == 1


def test_deleting_keeps_files_of_the_user(case: Any, jsonl: Callable[..., Path]) -> None:
    """A file that the user uploaded may serve other batches: it stays, the results go."""
    file = case.client.upload_file(jsonl(_rows(case, TEXTS)))
    made = case.client.create_batch_from_file(file.name, display_name="x")
    case.cloud.finish(made.name)
    case.client.delete_batch(made.name)
    assert [one.name for one in case.client.list_files()] == [file.name]


def test_refused_creations_leave_nothing_behind(case: Any, jsonl: Callable[..., Path]) -> None:
    """Texts laid out for a batch that the service refused do not stay there."""
    path = jsonl(_rows(case, TEXTS))
    for create in (
        lambda: case.client.async_batch_embed_contents(
            ["a"] * 1_000, display_name="x", model="gemini-embedding-9"
        ),
        lambda: case.client.create_batch_from_file(
            path, display_name="x", model="gemini-embedding-9"
        ),
    ):
        with pytest.raises(NotFoundError):
            create()
        assert list(case.client.list_files()) == []
