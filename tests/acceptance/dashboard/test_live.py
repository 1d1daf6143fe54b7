"""News over a real socket: what moved in the journal reaches a browser, once, and after a break."""

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dashboards import SENT, Visitor, enter, fill, move, visited
from embatch.journal.store import Journal
from embatch.types.state import RunEvent, RunState

DEADLINE_S = 30.0


class Stream:
    """A browser's stream of events, read line by line."""

    def __init__(self, url: str, path: str = "/live", last_id: str | None = None) -> None:
        where = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            str(where.hostname), where.port, timeout=DEADLINE_S
        )
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        self._connection.request("GET", path, headers=headers)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200
        assert self.answer.headers["Content-Type"].startswith("text/event-stream")
        self.last_id: str | None = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self.answer.close()

    def next(self) -> tuple[str, dict[str, Any]] | None:
        """The next event and its data; None at the end of the stream."""
        kind, data = "", ""
        for line in iter(self.answer.readline, b""):
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = value
            elif name == "id":
                self.last_id = value
            elif not name and kind:
                return kind, json.loads(data)
        return None

    def changed(self, run_id: str | None = None) -> dict[str, Any]:
        """The next change, of this run where one is named."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            event = self.next()
            assert event is not None, "the stream has ended"
            kind, data = event
            if kind == "changed" and (run_id is None or run_id in data["runs"] or data["all"]):
                return data
        raise AssertionError(f"no news of {run_id} came")


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    fill(opened)
    yield opened
    opened.close()


@pytest.fixture
def visitor(journal: Journal, journal_url: str) -> Iterator[Visitor]:
    with visited(journal_url) as opened:
        yield opened


def _started(stream: Stream) -> Stream:
    """The stream's greeting: from here on the journal is looked at."""
    assert stream.next() == ("beat", {})
    return stream


def test_a_change_of_the_journal_reaches_every_browser(visitor: Visitor, journal: Journal) -> None:
    """One that another process wrote; a stream of a run hears of that run alone."""
    with (
        _started(Stream(visitor.url)) as every,
        _started(Stream(visitor.url, "/live?run=r-run")) as one,
        _started(Stream(visitor.url, "/live?run=r-person")) as other,
    ):
        other_news: list[dict[str, Any]] = []
        time.sleep(1.0)  # the first look of all is at what stands already
        move(journal, journal.batches.numbered("r-run", 4), *SENT, at=time.time())
        assert every.changed("r-run")["seq"] > 0
        assert one.changed("r-run")["runs"] == ["r-run"]
        journal.transition_run(
            "r-person", RunEvent.CANCELLED, expected=RunState.RUNNING, now=time.time()
        )
        other_news.append(other.changed())
        assert other_news == [other_news[0]]
        assert other_news[0]["runs"] == ["r-person"]


def test_progress_that_leaves_no_event_is_news_too(visitor: Visitor, journal: Journal) -> None:
    """A look at a job notes its counts, and writes no line of history."""
    with _started(Stream(visitor.url, "/live?run=r-run")) as stream:
        time.sleep(1.0)
        batch = journal.batches.numbered("r-run", 3)
        claim = journal.leases.claim_batch(batch.id, owner="a test", lease_s=60.0)
        assert claim is not None
        journal.batches.note(claim.batch, claim.token, now=time.time(), succeeded=7)
        stream.changed("r-run")
        journal.leases.release(batch.id, claim.token, next_at=time.time() + 60.0)


def test_a_browser_that_comes_back_is_told_what_it_missed(
    visitor: Visitor, journal: Journal
) -> None:
    """By the id of the last event it saw; an id of another process means that all may be new."""
    with _started(Stream(visitor.url)) as stream, _started(Stream(visitor.url)) as keeper:
        time.sleep(1.0)
        enter(journal, "r-new-1", batches=1)
        stream.changed("r-new-1")
        seen = stream.last_id
        stream.__exit__()
        enter(journal, "r-new-2", batches=1)
        keeper.changed("r-new-2")
        with Stream(visitor.url, last_id=seen) as again:
            missed = again.changed("r-new-2")
            assert "r-new-1" not in missed["runs"]
            assert not missed["all"]
        with Stream(visitor.url, last_id="elsewhere-7") as stranger:
            assert stranger.changed()["all"]


def test_fifty_browsers_share_one_look_at_the_journal(visitor: Visitor, journal: Journal) -> None:
    """All of them hear of a change; the threads of the process do not grow with them."""
    before = threading.active_count()
    streams = [_started(Stream(visitor.url)) for _ in range(50)]
    try:
        time.sleep(1.0)
        enter(journal, "r-seen", batches=1)
        for stream in streams:
            stream.changed("r-seen")
        assert threading.active_count() - before < 20
    finally:
        for stream in streams:
            stream.__exit__()


def test_the_end_of_the_dashboard_ends_its_streams(journal: Journal, journal_url: str) -> None:
    """Nobody waits for a browser that stays."""
    with visited(journal_url) as visitor:
        stream = _started(Stream(visitor.url))
    while (event := stream.next()) is not None:
        assert event[0] in ("beat", "changed")
    stream.__exit__()


def test_a_stream_needs_the_token_too(journal: Journal, journal_url: str, tmp_path: Path) -> None:
    """And is refused before it begins."""
    with visited(journal_url, token="a-token-of-a-good-length") as visitor:
        assert visitor.get("/live", accept="text/event-stream").status == 401


def test_a_page_shows_what_its_reader_was_told_of(visitor: Visitor, journal: Journal) -> None:
    """Also where somebody else had it read just before the change: nothing more will be told."""
    for number in range(5):
        run_id = f"r-stale-{number}"
        enter(journal, run_id, batches=1)
        with _started(Stream(visitor.url, f"/live?run={run_id}")) as stream:
            stream.changed(run_id)
            assert visitor.get(f"/runs/{run_id}.json").json["run"]["state"] == "running"
            journal.transition_run(
                run_id, RunEvent.COMPLETED, expected=RunState.RUNNING, now=time.time()
            )
            stream.changed(run_id)
            assert visitor.get(f"/runs/{run_id}.json").json["run"]["state"] == "completed"


def test_a_change_between_a_page_and_its_stream_is_told(visitor: Visitor, journal: Journal) -> None:
    """The page says where its stream begins, be it the first that this dashboard gives."""
    for number in range(2):
        page = visitor.get("/runs/r-run").text
        found = re.search(r'data-since="([^"]+)"', page)
        assert found
        batch = journal.batches.numbered("r-run", 4 + number)
        move(journal, batch, *SENT, at=time.time())
        if number:
            _told_to_another(visitor)
        with Stream(visitor.url, f"/live?run=r-run&since={found[1]}") as stream:
            assert stream.changed("r-run")["runs"] == ["r-run"]


def _told_to_another(visitor: Visitor) -> None:
    with Stream(visitor.url, "/live") as other:
        other.changed("r-run")
