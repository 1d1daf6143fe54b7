"""The examples run as they stand, without a key, and go on where they were stopped."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
SECRETS = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of one's own; where it listens."""
    command = [sys.executable, "-m", "embatch", "serve", "--engine", "fake", "--port", "0"]
    with subprocess.Popen(
        [*command, "--data", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert told is not None
        yield told[0]
        process.terminate()


def _run(name: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**{k: v for k, v in os.environ.items() if k not in SECRETS}, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embedding_demo() -> None:
    """Submits, waits with progress, reads, normalises, compares and searches."""
    said = _run("async_batch_embedding_demo.py")
    for part in ("submitted 6 texts", "completed: 100 %", "normalised 1.000", "nearest to"):
        assert part in said


def test_production_demo(tmp_path: Path) -> None:
    """Failed rows are mended; the second start submits nothing."""
    first = _run("async_batch_production_demo.py", str(tmp_path))
    assert first.count("try again") == 5
    assert "120 vectors" in first
    assert np.isfinite(np.load(tmp_path / "vectors.npy")).all()
    second = _run("async_batch_production_demo.py", str(tmp_path))
    assert "submitted" not in second
    assert "120 vectors" in second


def test_examples_on_a_server_of_ones_own(server: str, tmp_path: Path) -> None:
    """Both run against `embatch serve`, named by the variable that other clients know too."""
    variables = {"GOOGLE_GEMINI_BASE_URL": server}
    assert "completed: 100 %" in _run("async_batch_embedding_demo.py", **variables)
    said = _run("async_batch_production_demo.py", str(tmp_path / "demo"), **variables)
    assert "120 vectors" in said
