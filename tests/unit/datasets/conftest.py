"""Files in every format, and parts of vectors."""

import gzip
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from embatch.datasets.digests import text_digests
from embatch.datasets.parts import FinishedPart, PartWriter
from embatch.datasets.published import publish_part


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows in the format that the file's name says."""
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    kind = plain.rsplit(".", 1)[1]
    if kind in ("jsonl", "ndjson"):
        data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    elif kind == "txt":
        data = b"".join(row["text"].encode() + b"\n" for row in rows)
    else:
        table = pa.Table.from_pylist(list(rows))
        sink = pa.BufferOutputStream()
        match kind:
            case "parquet":
                pq.write_table(table, sink, row_group_size=3)
            case "arrow":
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table, max_chunksize=4)
            case "arrows":
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table, max_chunksize=4)
            case "feather":
                pyarrow.feather.write_feather(table, sink, compression="lz4", chunksize=4)
            case _:
                options = pyarrow.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ",")
                pyarrow.csv.write_csv(table, sink, options)
        data = sink.getvalue().to_pybytes()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    return path


def _vectors_of(rows: Sequence[int], dims: int = 8) -> np.ndarray:
    """Unit vectors that tell their row: any swap shows."""
    if not len(rows):
        return np.empty((0, dims), np.float32)
    seeds = [hashlib.shake_128(str(row).encode()).digest(4 * dims) for row in rows]
    words = np.frombuffer(b"".join(seeds), np.uint32).reshape(len(rows), dims)
    matrix = words.astype(np.float64) / 2**31 - 1
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _staged(rows: Sequence[int], **kept: list[Any]) -> pa.Table:
    """What the stage of these rows holds."""
    texts = pa.array([f"text {row}" for row in rows], pa.string())
    columns = {
        "key": pa.array([f"k{row}" for row in rows], pa.string()),
        "row": pa.array(rows, pa.int64()),
        "text": texts,
        "text_sha256": text_digests(texts),
    }
    return pa.table(columns | kept)


WritePart = Callable[..., FinishedPart]


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    """`write_rows(path, rows)`: a file in the format that its name says."""
    return _write_rows


@pytest.fixture(scope="session")
def vectors_of() -> Callable[..., np.ndarray]:
    """`vectors_of(rows, dims=8)`: unit vectors that tell their row."""
    return _vectors_of


@pytest.fixture(scope="session")
def staged() -> Callable[..., pa.Table]:
    """`staged(rows, **kept)`: what the stage of these rows holds."""
    return _staged


@pytest.fixture
def write_part(tmp_path: Path) -> WritePart:
    """Publishes a part of rows in `tmp_path` and gives what its writer said."""

    def write(
        number: int,
        rows: Sequence[int],
        *,
        dims: int = 8,
        table: pa.Table | None = None,
        matrix: np.ndarray | None = None,
    ) -> FinishedPart:
        table = _staged(rows) if table is None else table
        matrix = _vectors_of(rows, dims) if matrix is None else matrix
        with PartWriter(tmp_path, number=number, token="lease", dims=matrix.shape[1]) as writer:
            writer.write(table, matrix)
            finished = writer.finish()
        publish_part(tmp_path, finished.temp_name, number)
        return finished

    return write
