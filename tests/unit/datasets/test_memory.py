"""Peak memory does not grow with the dataset."""

import os
import subprocess
import sys

import pytest

MB = 1 << 20
MEASURE = """
import resource, sys
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
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(folder, rows):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Freed memory goes back at once, so that the peak is what was in use.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(rows)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(output.stdout)


def test_pass_one_needs_no_more_memory_for_ten_times_the_rows(tmp_path):
    """200 thousand and 2 million rows, keys and texts: within 24 MB of each other."""
    small = peak_bytes(tmp_path / "small", 200_000)
    large = peak_bytes(tmp_path / "large", 2_000_000)
    assert large - small < 24 * MB


@pytest.mark.soak
def test_pass_one_over_ten_million_rows(tmp_path):
    """10 million rows within 32 MB of 200 thousand."""
    small = peak_bytes(tmp_path / "small", 200_000)
    large = peak_bytes(tmp_path / "large", 10_000_000)
    assert large - small < 32 * MB
