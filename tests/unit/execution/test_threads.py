"""The executor: no run stands in another's way, and nothing stays open behind one."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embatch import api
from embatch.config import Settings
from embatch.datasets.ownership import OutputLock
from embatch.environment import Environment
from embatch.errors import InvalidRequestError
from embatch.execution.threads import ThreadExecutor
from embatch.hooks import Hooks
from embatch.testing.engine import FakeEngine
from embatch.types.state import RunState

Opener = Callable[..., Environment]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Opener]:
    """Opens worlds over one journal."""
    opened: list[Environment] = []

    def open_world(**hooks: object) -> Environment:
        settings = Settings(home=tmp_path / "home", journal=f"sqlite:///{tmp_path / 'journal.db'}")
        given = {"open_engine": lambda _model, **_: FakeEngine(dims=8), **hooks}
        opened.append(Environment.open(settings, hooks=Hooks(**given)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_world
    for one in opened:
        one.close()


def executor_of(environment: Environment) -> ThreadExecutor:
    return ThreadExecutor(
        environment.journal, environment.context, close_context=environment.release
    )


def test_a_worker_lets_go_of_what_has_ended(world: Opener, tmp_path: Path) -> None:
    """While it works on, the output of a run that has ended is free for others."""
    environment = world()
    runs = [
        api.submit([f"{n} {i}" for i in range(5)], tmp_path / f"out-{n}", environment=environment)
        for n in range(3)
    ]
    free: list[int] = []

    def over() -> bool:
        if any(run.status().state is not RunState.COMPLETED for run in runs):
            return False
        for number in set(range(3)) - set(free):
            try:
                OutputLock(tmp_path / f"out-{number}", exclusive=True).close()
            except InvalidRequestError:
                return False
            free.append(number)
        return True

    executor_of(environment).work(until=over, poll_s=0.05, timeout_s=60)
    assert sorted(free) == [0, 1, 2]


def test_runs_that_are_planned_leave_a_thread_to_the_others(world: Opener, tmp_path: Path) -> None:
    """Three long readings at once do not keep a staged run from its end."""
    ready = api.submit(["a", "b"], tmp_path / "ready", environment=world())
    gate = threading.Event()
    planning: list[str] = []

    def checkpoint(name: str) -> None:
        if name == "plan.digest":
            planning.append(name)
            assert gate.wait(60)

    environment = world(checkpoint=checkpoint)
    for number in range(3):
        api.enter([f"{number}"], tmp_path / f"slow-{number}", environment=environment)

    def over() -> bool:
        ended = ready.status().state is RunState.COMPLETED
        if ended:
            gate.set()
        return ended and len(planning) == 3

    executor_of(environment).work(until=over, poll_s=0.05, timeout_s=60)
    assert ready.status().state is RunState.COMPLETED
    assert len(planning) == 3
