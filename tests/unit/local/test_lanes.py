"""Work is done by urgency, then age, and nothing is lost at the end."""

import subprocess
import sys
import threading
from concurrent.futures import Future
from functools import partial

import pytest

from embatch.errors import InvalidRequestError
from embatch.local.lanes import URGENT_IN_A_ROW, Lanes


def _held(lanes: Lanes) -> tuple[threading.Event, Future[None]]:
    """A piece of work that keeps one lane busy until the event is set."""
    begun, gate = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert gate.wait(20)

    future = lanes.submit(wait)
    assert begun.wait(20)
    return gate, future


def test_urgent_work_overtakes_what_waits() -> None:
    """A query's pack goes before those of a slice; each kind in its order."""
    lanes, order = Lanes(1), list[str]()
    gate, _ = _held(lanes)
    for name in ("slice 1", "slice 2"):
        lanes.submit(partial(order.append, name))
    for name in ("query 1", "query 2"):
        lanes.submit(partial(order.append, name), urgent=True)
    gate.set()
    lanes.close()
    assert order == ["query 1", "query 2", "slice 1", "slice 2"]


def test_a_flood_of_urgent_work_starves_nothing() -> None:
    """One usual piece goes after every few urgent ones."""
    lanes, order = Lanes(1), list[str]()
    gate, _ = _held(lanes)
    for number in range(2):
        lanes.submit(partial(order.append, f"slice {number}"))
    for _ in range(3 * URGENT_IN_A_ROW):
        lanes.submit(partial(order.append, "query"), urgent=True)
    gate.set()
    lanes.close()
    flood = ["query"] * URGENT_IN_A_ROW
    assert order == [*flood, "slice 0", *flood, "slice 1", *flood]


def test_a_process_that_forgets_to_close_ends_whole() -> None:
    """What was begun is ended before the interpreter goes, without an abort."""
    script = (
        "import time\n"
        "from embatch.local.lanes import Lanes\n"
        "lanes = Lanes(2)\n"
        "for _ in range(4):\n"
        "    lanes.submit(lambda: (time.sleep(0.05), print('done')))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.count("done") == 4
    assert ended.stderr == ""


def test_an_error_belongs_to_whoever_waits() -> None:
    """A piece that raises tells its future, and the lane goes on."""
    lanes = Lanes(1)
    broken = lanes.submit(partial(int, "x"))  # type: ignore[arg-type]
    fine = lanes.submit(list[int]().clear)
    with pytest.raises(ValueError, match="invalid literal"):
        broken.result(20)
    assert fine.result(20) is None
    lanes.close()


def test_cancelled_work_is_not_done() -> None:
    """What a failed call leaves behind never writes."""
    lanes, done = Lanes(1), list[int]()
    gate, _ = _held(lanes)
    waiting = lanes.submit(partial(done.append, 1))
    assert waiting.cancel()
    gate.set()
    lanes.close()
    assert done == []


def test_closing_ends_what_was_begun_and_refuses_the_rest() -> None:
    """Close twice is fine; a submit after it says what to do."""
    lanes, done = Lanes(2), list[int]()
    for number in range(20):
        lanes.submit(partial(done.append, number))
    lanes.close()
    lanes.close()
    assert sorted(done) == list(range(20))
    with pytest.raises(InvalidRequestError, match="engine is closed: open another"):
        lanes.submit(list[int]().clear)
