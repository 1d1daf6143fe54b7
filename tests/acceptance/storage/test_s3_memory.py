"""Peak memory of a run on S3 does not grow with the dataset."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = """
import sys
from pathlib import Path
from embatch.cli import main
from embatch.hooks import Hooks

def open_engine(_model, **_):
    from embatch.testing.engine import FakeEngine
    return FakeEngine(dims=64)

assert main(sys.argv[1:], hooks=Hooks(open_engine=open_engine)) == 0
status_of_process = Path("/proc/self/status").read_text()
print(int(status_of_process.split("VmHWM:")[1].split()[0]) / 1024)
"""


def peak_mb(bucket: Any, rows: int, folder: Path) -> float:
    """Peak memory in MB of 2**20 bytes of a run from and to S3, a tenth of whose texts repeat."""
    lines = (
        f'{{"id": "key-{row}", "text": "short text number {row if row % 10 else row // 2}"}}'
        for row in range(rows)
    )
    bucket.put(f"{rows}.jsonl", "\n".join(lines).encode())
    command = [sys.executable, "-c", CHILD, "run", bucket.url(f"{rows}.jsonl"), "--key", "id"]
    command += ["-o", bucket.url(f"out-{rows}"), "--json"]
    variables = {"EMBATCH_HOME": str(folder / str(rows)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command,
        env=variables | bucket.s3.environ(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, peak = done.stdout.splitlines()
    assert (json.loads(status)["written"], json.loads(status)["failed"]) == (rows, 0), status
    return float(peak)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_on_s3_takes_no_more_memory_for_more_rows(bucket: Any, tmp_path: Path) -> None:
    """Five times the rows, within a tenth; what lies in the bucket is as much as was written."""
    small = max(peak_mb(bucket, rows, tmp_path) for rows in (20_000, 20_001))
    large = peak_mb(bucket, 100_000, tmp_path)
    print(f"\npeak of 20,000 rows {small:.0f} MB, of 100,000 rows {large:.0f} MB")
    assert large <= 1.1 * small
    assert sum(part["rows"] for part in bucket.manifest("out-100000")["parts"]) == 100_000
