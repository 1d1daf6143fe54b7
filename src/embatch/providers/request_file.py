"""Staged items as a file of request rows, each under the wire key of its place."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embatch.client.requests import build_rows, spool
from embatch.errors import InvalidRequestError
from embatch.providers.base import StagedItems, label_hash
from embatch.storage.places import make_folder


@contextmanager
def request_file(
    stage: StagedItems,
    label: str,
    row: dict[str, Any],
    *,
    affixes: tuple[str, str],
    most_bytes: int,
) -> Iterator[Path]:
    """The rows of `stage` as JSONL in a file beside it, which is gone in the end.

    `row` holds NUL in the text's place. Constant memory. Raises InvalidRequestError for more
    than `most_bytes`, and StorageError when the disk does not take them.
    """
    folder, begin = stage.scratch, f".{stage.path.name}.{label_hash(label)}."
    make_folder(folder)
    for left in folder.glob(f"{begin}*.jsonl"):
        left.unlink(missing_ok=True)  # of a process that died
    path = folder / f"{begin}{secrets.token_hex(4)}.jsonl"
    try:
        spool(_rows(stage, label, row, affixes), path)
        size = path.stat().st_size
        if size > most_bytes:
            raise InvalidRequestError(
                f"the requests of {stage.items} rows take {size} bytes, and the service takes "
                f"{most_bytes} at once"
            )
        yield path
    finally:
        path.unlink(missing_ok=True)


def _rows(
    stage: StagedItems, label: str, row: dict[str, Any], affixes: tuple[str, str]
) -> Iterator[bytes]:
    key, start = f"{label_hash(label)}:".encode(), 0
    for batch in stage.read():
        texts = batch["text"].to_pylist()
        yield from build_rows(texts, row, affixes=affixes, key=key, start=start)
        start += len(texts)
