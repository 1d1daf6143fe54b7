"""Faults: asked for, counted, drawn."""

from pathlib import Path

import pytest

from embatch.errors import InvalidRequestError
from embatch.testing.cloud import FAULTS, FakeCloud, Fault, FaultKind
from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.clock import CloudClock
from embatch.testing.cloud.store import Store

KIND = FaultKind.SERVER_ERROR


@pytest.fixture
def board(tmp_path):
    store = Store(tmp_path)
    yield FaultBoard(store, CloudClock(manual=True), seed=3)
    store.close()


def strikes(board, n=6, facts=None):
    return [board.strike(KIND, facts or {}) is not None for _ in range(n)]


def test_every_kind_is_described_and_tested():
    """Each fault has a sheet, and a test that names it."""
    assert set(FAULTS) == set(FaultKind)
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_*faults.py")]
    untested = [kind for kind in FaultKind if not any(f'"{kind}"' in text for text in sources)]
    assert untested == []


def test_after_and_times_bound_the_strikes(board):
    """The first matches pass, then it strikes so often, then no more."""
    board.add(Fault(KIND, after=2, times=3))
    assert strikes(board) == [False, False, True, True, True, False]


def test_match_patterns_choose_the_facts(board):
    """Every pattern has to fit."""
    board.add(Fault(KIND, {"route": "batches.*", "model": "m"}))
    assert strikes(board, 1, {"route": "batches.get", "model": "m"}) == [True]
    assert strikes(board, 1, {"route": "batches.get", "model": "n"}) == [False]
    assert strikes(board, 1, {"route": "files.get", "model": "m"}) == [False]


def test_probability_is_drawn_from_the_seed(tmp_path):
    """The same seed gives the same strikes; another gives others."""

    def drawn(seed, folder):
        store = Store(tmp_path / folder)
        board = FaultBoard(store, CloudClock(manual=True), seed=seed)
        board.add(Fault(KIND, probability=0.5))
        struck = strikes(board, 64)
        store.close()
        return struck

    first = drawn(1, "a")
    assert first == drawn(1, "b")
    assert first != drawn(2, "c")
    assert 16 < sum(first) < 48


def test_faults_survive_a_round_trip_through_json(board):
    """A fault is what its JSON says."""
    fault = Fault("delay", {"route": "x"}, 2, 0.5, 1, {"seconds": 3.0}, "mine")
    assert Fault(**fault.to_json()) == fault


def test_unknown_kinds_and_arguments_are_refused():
    """A misspelt fault does not pass in silence."""
    with pytest.raises(InvalidRequestError, match="second;"):
        Fault("delay", args={"second": 1})
    with pytest.raises(ValueError, match="no_such"):
        Fault("no_such")


def test_faults_can_be_lifted(board):
    """By id, by kind, or all."""
    kept = board.add(Fault("delay"))
    gone = board.add(Fault(KIND))
    board.clear(gone)
    assert [fault["id"] for fault in board.faults()] == [kept]
    board.clear("delay")
    assert board.faults() == []


def test_counts_survive_a_restart(tmp_path):
    """A fault that struck its times does not strike anew."""
    with FakeCloud(state=tmp_path, faults=[Fault(KIND, times=1)]) as cloud:
        assert cloud._core.board.strike(KIND, {})
    with FakeCloud(state=tmp_path, faults=[Fault(KIND, times=1)]) as cloud:
        assert cloud._core.board.strike(KIND, {}) is None
        assert cloud.faults()[0]["struck"] == 1
