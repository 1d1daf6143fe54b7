"""Peak memory does not grow with the dataset."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import sys
from pathlib import Path
from embatch.cli import main
from embatch.hooks import Hooks

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
source = folder / "texts.jsonl"
with source.open("w") as stream:
    for row in range(rows):
        text = row if row % 10 else row // 2
        stream.write(f'{{"id": "key-{row}", "text": "short text number {text}"}}\\n')

def open_engine(_model, **_):
    from embatch.testing.engine import FakeEngine
    return FakeEngine(dims=64)

asked = ["run", str(source), "-o", str(folder / "out"), "--key", "id", "--json"]
assert main(asked, hooks=Hooks(open_engine=open_engine)) == 0
status_of_process = Path("/proc/self/status").read_text()
print(int(status_of_process.split("VmHWM:")[1].split()[0]) / 1024)
"""


def peak_mb(folder: Path, rows: int) -> float:
    """Peak memory in MB of 2**20 bytes of `embatch run` over `rows` rows, a twentieth copies.

    Read from VmHWM: Linux hands a parent's `ru_maxrss` down to the processes that it starts.
    """
    folder.mkdir()
    command = [sys.executable, "-c", CHILD, str(folder), str(rows)]
    variables = {"EMBATCH_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    status, peak = done.stdout.splitlines()
    assert (json.loads(status)["written"], json.loads(status)["failed"]) == (rows, 0), status
    return float(peak)


@pytest.mark.timeout(1500)
def test_a_million_rows_take_the_memory_of_fifty_thousand(tmp_path: Path) -> None:
    """Within a tenth, and under 400 MB."""
    small = max(peak_mb(tmp_path / f"small-{n}", 50_000) for n in range(3))
    large = peak_mb(tmp_path / "large", 1_000_000)
    print(f"\npeak of 50,000 rows {small:.0f} MB, of 1,000,000 rows {large:.0f} MB")
    assert large <= 1.1 * small
    assert large < 400
