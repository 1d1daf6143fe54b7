"""Peak memory does not grow with the dataset."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

MB = 1 << 20
PEAK = """
def peak():
    # Not getrusage: its peak begins with that of the process which started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""
MEASURE = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
schema = pa.schema([("id", pa.string()), ("text", pa.string())])
rng = np.random.default_rng(1)
with pq.ParquetWriter(folder / "in.parquet", schema) as writer:
    for start in range(0, rows, 50_000):
        ids = pa.array(np.arange(start, start + 50_000)).cast(pa.string())
        texts = pa.array(rng.integers(0, rows, 50_000)).cast(pa.string())
        writer.write_table(pa.table([ids, texts], schema=schema))

from embatch.datasets.digests import read_digest
from embatch.datasets.source import open_source

source = open_source([str(folder / "in.parquet")], key="id")
digest = read_digest(source, folder / "digest", memory_bytes=16 << 20)
assert digest.rows == rows and digest.copy_rows > rows // 5
print(peak())
"""


READ = """
import sys
from embatch.datasets.source import open_source

source = open_source([sys.argv[1]])
before = peak()
rows = sum(block.batch.num_rows for block in source.read())
assert rows == int(sys.argv[2])
print(peak() - before)
"""


def run(script, *arguments):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Freed memory goes back at once, so that the peak is what was in use.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    output = subprocess.run(
        [sys.executable, "-c", PEAK + script, *map(str, arguments)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(output.stdout)


@pytest.fixture(scope="module")
def texts():
    """500 thousand texts of 400 bytes: 200 MB."""
    data = np.random.default_rng(2).integers(97, 123, 400 * 500_000, dtype=np.uint8)
    offsets = np.arange(0, 400 * 500_000 + 1, 400, dtype=np.int32)
    return pa.StringArray.from_buffers(500_000, pa.py_buffer(offsets), pa.py_buffer(data))


@pytest.mark.parametrize("kind", ["parquet", "feather", "csv", "jsonl", "txt"])
def test_a_large_file_is_read_in_little_memory(tmp_path, texts, kind):
    """200 MB in one row group or record batch: what reading adds stays under 120 MB."""
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": texts})
    match kind:
        case "parquet":
            pq.write_table(table, path, row_group_size=500_000, use_dictionary=False)
        case "feather":
            pyarrow.feather.write_feather(
                table, path, compression="uncompressed", chunksize=500_000
            )
        case "csv":
            pyarrow.csv.write_csv(table, path)
        case _:
            line = b'{"text":"%s"}\n' if kind == "jsonl" else b"%s\n"
            with path.open("wb") as stream:
                for batch in table.to_batches(8192):
                    stream.writelines(line % text.as_buffer().to_pybytes() for text in batch[0])
    assert run(READ, path, 500_000) < 120 * MB


def test_pass_one_needs_no_more_memory_for_ten_times_the_rows(tmp_path):
    """200 thousand and 2 million rows, keys and texts: within 24 MB of each other."""
    small = run(MEASURE, tmp_path / "small", 200_000)
    large = run(MEASURE, tmp_path / "large", 2_000_000)
    assert large - small < 24 * MB


@pytest.mark.soak
def test_pass_one_over_ten_million_rows(tmp_path):
    """10 million rows within 32 MB of 200 thousand."""
    small = run(MEASURE, tmp_path / "small", 200_000)
    large = run(MEASURE, tmp_path / "large", 10_000_000)
    assert large - small < 32 * MB
