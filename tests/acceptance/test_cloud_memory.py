"""Peak memory of a run on a cloud does not grow with the dataset, reading processes included."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.testing.cloud import CloudProcess

DIMS = 768
MOST_MB = 500
SAMPLE_S = 0.05


def write_texts(path: Path, rows: int) -> None:
    """Distinct texts of about 45 characters."""
    with pq.ParquetWriter(path, pa.schema({"id": pa.string(), "text": pa.string()})) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(start + 50_000, rows))
            texts = [f"text number {n} of a long catalogue of things" for n in numbers]
            writer.write_table(pa.table({"id": [f"key-{n}" for n in numbers], "text": texts}))


def peaks_mb(process: psutil.Process) -> tuple[float, float]:
    """VmHWM of one process without what it maps of files now, and that, in MB of 2**20 bytes; both
    0 when it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    files = kilobytes(status, "RssFile:")
    return max(0, kilobytes(status, "VmHWM:") - files) / 1024, files / 1024


def kilobytes(text: str, name: str) -> int:
    """The figure after `name` in a page of /proc; 0 where there is none."""
    _, found, rest = text.partition(name)
    return int(rest.split()[0]) if found else 0


def watched(command: subprocess.Popen[str]) -> tuple[float, int]:
    """The most that the peaks of a command and of all that it starts came to, at any time; and how
    many processes there were then."""
    most = (0.0, 0)
    root = psutil.Process(command.pid)
    while True:
        try:
            command.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            peaks = [peaks_mb(process) for process in (root, *root.children(recursive=True))]
            # All map the same libraries.
            together = sum(own for own, _ in peaks) + max(files for _, files in peaks)
            most = max(most, (together, len(peaks)))
        else:
            return most


def run(folder: Path, rows: int, *more: str) -> float:
    """The peak of a whole run over the fake cloud, all of its processes together."""
    folder.mkdir()
    write_texts(folder / "texts.parquet", rows)
    with CloudProcess(state=folder / "cloud") as cloud:
        variables = {
            "EMBATCH_HOME": str(folder / "home"),
            "PATH": "/usr/bin:/bin",
            "GOOGLE_API_KEY": cloud.api_key,
            "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
        }
        flags = ["--provider", "gemini", "--dims", str(DIMS), "--key", "id"]
        command = subprocess.Popen(
            [
                *(sys.executable, "-m", "embatch", "run", "texts.parquet", "-o", "out", *flags),
                *("--poll-interval", "0.5", "--json", "--log-format", "text", *more),
            ],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        peak, processes = watched(command)
        assert command.stdout is not None
        status = json.loads(command.stdout.read())
        command.stdout.close()
        assert command.returncode == 0, status
        assert (status["written"], status["failed"]) == (rows, 0)
        assert cloud.bill().rows_billed_twice == 0
    assert processes > 1, "no process read beside the run"
    return peak


def compare(tmp_path: Path, small_rows: int, large_rows: int, *flags: str) -> None:
    """Runs both; prints and compares."""
    small = run(tmp_path / "small", small_rows, *flags)
    large = run(tmp_path / "large", large_rows, *flags)
    print(f"\npeak of {small_rows} rows {small:.0f} MB, of {large_rows} rows {large:.0f} MB")
    assert large <= 1.1 * small
    assert large < MOST_MB


@pytest.mark.timeout(900)
def test_three_times_the_rows_take_the_same_memory(tmp_path: Path) -> None:
    """Within a tenth, and under 500 MB, the run and its processes together."""
    compare(tmp_path, 64_000, 192_000, "--max-batch-items", "8000")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_rows_take_the_memory_of_two_hundred_thousand(tmp_path: Path) -> None:
    """The same, whole."""
    compare(tmp_path, 200_000, 1_000_000)
