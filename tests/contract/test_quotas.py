"""Beliefs in the journal: no two threads or processes act on the same reading."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from embatch.journal.calibrations import REMEMBERED_BYTES, Calibration
from embatch.journal.quotas import Occupancy, Ruling
from embatch.journal.store import Journal

NOW = 1_000_000.0
SCOPE = "gemini/a-key/gemini-embedding-001"
ADDER = """
import sys
from embatch.journal.quotas import Ruling
from embatch.journal.store import Journal

journal = Journal.open(sys.argv[1])
for _ in range(int(sys.argv[2])):
    journal.quotas.change(
        "shared", lambda values, _: Ruling(belief={"count": values.get("count", 0) + 1}), now=0.0
    )
journal.close()
"""


@pytest.fixture
def url(journal_url: str) -> str:
    return journal_url


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    opened = Journal.open(url)
    yield opened
    opened.close()


def adding(values: Mapping[str, Any], _: Occupancy) -> Ruling:
    """One more."""
    return Ruling(belief={"count": values.get("count", 0) + 1})


def test_two_processes_and_threads_change_one_belief_in_turn(journal: Journal, url: str) -> None:
    """No change is lost, whoever makes it."""
    processes = [
        subprocess.Popen([sys.executable, "-c", ADDER, url, "40"], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    threads = [
        threading.Thread(
            target=lambda: [journal.quotas.change("shared", adding, now=NOW) for _ in range(40)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
    assert journal.quotas.believed("shared") == {"count": 160}


def test_a_refusal_to_decide_leaves_the_belief_as_it_was(journal: Journal) -> None:
    """What raises changes nothing."""
    journal.quotas.change(SCOPE, adding, now=NOW)

    def refuse(_: Mapping[str, Any], __: Occupancy) -> Ruling:
        raise LookupError("no room")

    with pytest.raises(LookupError):
        journal.quotas.change(SCOPE, refuse, now=NOW)
    assert journal.quotas.believed(SCOPE) == {"count": 1}
    assert journal.quotas.believed("another") == {}
    assert journal.quotas.occupancy(SCOPE, now=NOW) == Occupancy()


def test_counts_of_a_model_add_up_and_old_ones_fade(journal: Journal, url: str) -> None:
    """What was counted long ago weighs half against what is counted now."""

    def count(text_bytes: int, tokens: int) -> None:
        change = journal.calibrations.counting("m", text_bytes=text_bytes, tokens=tokens, now=NOW)
        with journal._database.write() as connection:
            change(connection)

    assert journal.calibrations.find("m") is None
    count(1000, 250)
    count(1000, 350)
    assert journal.calibrations.find("m") == Calibration(text_bytes=2000, tokens=600)
    count(REMEMBERED_BYTES, 0)
    count(8, 4)
    found = journal.calibrations.find("m")
    assert found == Calibration(text_bytes=(REMEMBERED_BYTES + 2000) // 2 + 8, tokens=304)
    assert journal.calibrations.find("another") is None
