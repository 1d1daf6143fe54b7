"""What counts as a change of the journal, and what each listener hears of it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sse_starlette import ServerSentEvent

from dashboards import NOW, SENT, enter, fill, move
from embatch.dashboard.live import KEPT, Live
from embatch.journal.store import Journal
from embatch.types.state import RunEvent, RunState


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    fill(opened)
    yield opened
    opened.close()


def test_each_change_is_told_once(journal: Journal) -> None:
    """Events, notes without an event, leases and workers; the first look tells nothing."""
    watch = journal.watch()
    assert watch.look() == (set(), False, False)
    assert watch.look() == (set(), False, False)
    assert set(watch.open_runs) == {"r-run", "r-person", "r-workers"}
    batch = move(journal, journal.batches.numbered("r-run", 4), *SENT, at=NOW)
    assert watch.look() == ({"r-run"}, False, False)
    claim = journal.leases.claim_batch(batch.id, owner="a test", lease_s=60.0)
    assert claim is not None
    assert watch.look()[0] == {"r-run"}
    journal.batches.note(claim.batch, claim.token, now=NOW, succeeded=3)
    assert watch.look()[0] == {"r-run"}
    journal.leases.release(batch.id, claim.token, next_at=NOW + 99.0)
    assert watch.look()[0] == {"r-run"}
    journal.transition_run("r-person", RunEvent.CANCELLED, expected=RunState.RUNNING, now=NOW)
    assert watch.look()[0] == {"r-person"}
    about = {"host": "h", "pid": 1, "version": "1", "queues": [], "concurrency": 1}
    worker = journal.workers.register(execution="threads", **about)  # type: ignore[arg-type]
    assert watch.look() == (set(), False, True)
    journal.workers.leave(worker, steps=1)
    assert watch.look() == (set(), False, True)
    assert watch.look() == (set(), False, False)


def test_a_forgotten_run_is_told(journal: Journal) -> None:
    """One that had ended and one that had not, beside a new one; once each."""
    watch = journal.watch()
    watch.look()
    journal.delete_run("r-done")
    assert watch.look()[0] == {"r-done"}
    journal.delete_run("r-person")
    enter(journal, "r-new", batches=1)
    assert watch.look()[0] == {"r-person", "r-new"}
    assert watch.look()[0] == set()


def test_what_happens_after_a_run_is_forgotten_is_told(journal: Journal) -> None:
    """No event has the id of one that went with its run, whatever was read up to it."""
    enter(journal, "r-last", batches=3)
    watch = journal.watch()
    watch.look()
    newest = journal.events("r-last", limit=100)[-1].id
    journal.delete_run("r-last")
    watch.look()
    journal.add_event("r-done", "looked", now=NOW)
    assert watch.look()[0] == {"r-done"}
    assert journal.events("r-done", limit=100)[-1].id > newest


def test_an_event_that_is_seen_late_is_told(journal: Journal) -> None:
    """Of two transactions at once the smaller id may come to light after the larger one."""
    watch = journal.watch()
    watch.look()
    journal.add_event("r-done", "looked", now=NOW)
    with journal._database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE events SET id = id + 5 WHERE id = (SELECT max(id) FROM events)"
        )
    assert watch.look()[0] == {"r-done"}
    with journal._database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO events (id, run_id, at, kind) "
            "SELECT max(id) - 2, 'r-failed', 0, 'looked' FROM events"
        )
    assert watch.look()[0] == {"r-failed"}
    assert watch.look()[0] == set()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    enter(opened, "r1", batches=1)
    yield opened
    opened.close()


def _told(event: ServerSentEvent) -> tuple[str, dict[str, object]]:
    return str(event.event), json.loads(str(event.data))


def test_a_listener_that_lags_hears_one_message_for_all(quiet: Journal) -> None:
    """Nothing is queued for it: it is told which runs to read again."""

    async def listen() -> None:
        live = Live(quiet)
        stream = live.stream(run=None, last_id=None)
        assert _told(await anext(stream)) == ("beat", {})
        for number in range(50):
            live.announce(f"r{number % 3}")
        kind, data = _told(await anext(stream))
        assert kind == "changed"
        assert sorted(data["runs"]) == ["r0", "r1", "r2"]  # type: ignore[call-overload]
        assert data["seq"] == 50
        live.stop()
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(listen())


def test_a_browser_counts_before_its_stream_begins(
    quiet: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come in one instant, no more are let in than may be."""
    monkeypatch.setattr("embatch.dashboard.live.MOST_CLIENTS", 2)

    async def listen() -> None:
        live = Live(quiet)
        assert [live.enter() for _ in range(4)] == [True, True, False, False]
        live.leave()
        assert [live.enter(), live.enter(), live.clients] == [True, False, 2]

    asyncio.run(listen())


def test_a_listener_of_a_run_hears_of_no_other(quiet: Journal) -> None:
    """It learns what it missed from the id of the last message it saw."""

    async def listen() -> None:
        live = Live(quiet)
        stream = live.stream(run="r1", last_id=None)
        await anext(stream)
        live.announce("r2")
        live.announce("r1")
        event = await anext(stream)
        assert _told(event)[1]["runs"] == ["r1"]
        live.announce("r2")
        live.announce("r1")
        again = live.stream(run="r1", last_id=str(event.id))
        await anext(again)
        assert _told(await anext(again))[1] == {
            "runs": ["r1"], "workers": False, "all": False, "seq": 4,
        }  # fmt: skip
        live.stop()

    asyncio.run(listen())


def test_what_is_remembered_is_bounded(quiet: Journal) -> None:
    """Whoever comes back after more changes than that is told that anything may be new."""

    async def listen() -> None:
        live = Live(quiet)
        live.announce("first")
        for number in range(KEPT * 2):
            live.announce(f"r{number}")
        assert len(live._latest) == KEPT
        known, lost = f"{live._boot}-{KEPT * 2}", f"{live._boot}-1"
        for last_id, every in ((known, False), (lost, True), ("other-1", True), ("junk", True)):
            stream = live.stream(run=None, last_id=last_id)
            await anext(stream)
            assert _told(await anext(stream))[1]["all"] is every, last_id
        live.stop()

    asyncio.run(listen())


def test_a_process_that_goes_away_is_seen_without_an_event(
    quiet: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that have not ended are announced now and then: their page tells who works on them."""
    monkeypatch.setattr("embatch.dashboard.live.AGES_S", 0.2)
    monkeypatch.setattr("embatch.dashboard.live.LOOK_S", 0.05)

    async def listen() -> None:
        live = Live(quiet)
        assert live.enter()
        stream = live.stream(run="r1", last_id=None)
        await anext(stream)
        async with asyncio.timeout(30):
            assert _told(await anext(stream))[0] == "changed"
        live.stop()

    asyncio.run(listen())
