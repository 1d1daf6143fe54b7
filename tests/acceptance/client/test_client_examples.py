"""The examples run as they stand, without a key, and go on where they were stopped."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[3] / "examples"
SECRETS = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL")


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={key: value for key, value in os.environ.items() if key not in SECRETS},
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
