"""The lock on an output tells who works on it."""

import subprocess
import sys

import pytest

from embatch.datasets.ownership import OutputLock, is_held
from embatch.errors import InvalidRequestError

HOLDER = """
import sys
from pathlib import Path
from embatch.datasets.ownership import OutputLock
with OutputLock(Path(sys.argv[1]), exclusive=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_works_is_told(tmp_path):
    """Nobody yet, nobody any more, somebody; also while several do."""
    assert is_held(tmp_path) is None
    with OutputLock(tmp_path, exclusive=False), OutputLock(tmp_path, exclusive=False):
        assert is_held(tmp_path) is True
    assert is_held(tmp_path) is False


def test_another_process_counts_until_it_is_killed(tmp_path):
    """No lock outlives its process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path) is True
    finally:
        process.kill()
        process.communicate()
    assert is_held(tmp_path) is False


def test_two_journals_never_share_an_output(tmp_path):
    """The exclusive lock waits for nobody that works."""
    with OutputLock(tmp_path, exclusive=False), pytest.raises(InvalidRequestError, match="another"):
        OutputLock(tmp_path, exclusive=True)
    with OutputLock(tmp_path, exclusive=True), pytest.raises(InvalidRequestError, match="another"):
        OutputLock(tmp_path, exclusive=False)
