"""What the pages read from the journal is what the journal holds, on either database."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboards import DONE, MODEL, NOTIFY, NOW, ROWS, SENT, enter, fill, move
from embatch.dashboard.batch_page import read_batch
from embatch.dashboard.events import PER_PAGE
from embatch.dashboard.machines import read_workers
from embatch.dashboard.rendering import render
from embatch.dashboard.rows import PER_PAGE as RUNS_A_PAGE
from embatch.dashboard.rows import read_runs, row_of_status
from embatch.dashboard.run_page import read_run
from embatch.dashboard.views import Frame, View
from embatch.errors import NotFoundError
from embatch.journal.store import Journal
from embatch.runs import attendance
from embatch.runs.status import read_status
from embatch.storage.places import Place
from embatch.types.embedding import Space
from embatch.types.state import RunEvent, RunState

LATER = NOW + 200.0
EVERYTHING = {"state": None, "tag": None, "search": None, "page": 1}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def journal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Journal]:
    """Filled, and changed by no test."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 'journal.db'}"
    else:
        url = request.getfixturevalue("postgres_server").create_journal()
    opened = Journal.open(url)
    fill(opened)
    yield opened
    opened.close()


@pytest.fixture
def own(journal_url: str) -> Iterator[Journal]:
    """Empty, for a test that writes."""
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def drawn(page: View, here: str) -> str:
    """The page's HTML."""
    now: float = page.to_json()["now"]
    around = Frame(
        now=now, version="1", journal="j", read_only=False, csrf="c", path="/", here=here
    )
    return render(page, around)


def ids(journal: Journal, **wanted: object) -> list[str]:
    page = read_runs(journal, **(EVERYTHING | wanted), now=LATER)  # type: ignore[arg-type]
    return [row.id for row in page.rows]


def test_a_row_of_the_list_is_the_run_s_status(journal: Journal) -> None:
    """The list is read in bulk, and says of each run what its own status says."""
    page = read_runs(journal, **EVERYTHING, now=LATER)  # type: ignore[arg-type]
    assert len(page.rows) == 6
    for row in page.rows:
        status = read_status(journal, row.id, now=LATER)
        assert row == row_of_status(status, row.spark)
        assert sum(row.spark) == status.written


def test_the_list_is_filtered_by_state_tag_and_words(journal: Journal) -> None:
    """Whatever stands in names and tags; newest first; all of them are counted."""
    assert ids(journal) == ["r-workers", "r-budget", "r-failed", "r-done", "r-person", "r-run"]
    assert ids(journal, state="failed") == ["r-failed"]
    assert ids(journal, tag="team=a<b") == ["r-done", "r-run"]
    assert ids(journal, tag="team=nobody") == []
    assert ids(journal, search="ALERT(1)") == ["r-failed", "r-run"]
    assert ids(journal, search="%") == []
    assert ids(journal, search="_") == []
    page = read_runs(journal, state="running", tag=None, search=None, page=1, now=LATER)
    assert (page.matching, page.total) == (3, 6)
    assert page.states["completed_with_failures"] == 1


def test_pages_of_the_list_hold_every_run_once(own: Journal) -> None:
    """Also when runs were begun in the same instant."""
    for number in range(RUNS_A_PAGE + 3):
        enter(own, f"r{number:03d}", batches=1)
    first, second = (ids(own, page=page) for page in (1, 2))
    assert (len(first), len(second)) == (RUNS_A_PAGE, 3)
    assert len({*first, *second}) == RUNS_A_PAGE + 3


def test_the_last_moment_of_the_series_is_how_rows_stand_now(journal: Journal) -> None:
    """Rows that the events moved are where the batches say, at every moment as many as planned."""
    for run_id in ("r-run", "r-person", "r-done"):
        page = read_run(journal, run_id, before=None, now=LATER)
        assert page.series is not None
        held = Counter[str]()
        for batch in journal.batches.walk(run_id):
            held[batch.state.value] += batch.items
        last = {layer.state: layer.rows[-1] for layer in page.series.layers if layer.rows[-1]}
        assert last == dict(held)
    running = read_run(journal, "r-run", before=None, now=LATER).series
    assert running is not None
    later = zip(*(layer.rows[1:] for layer in running.layers), strict=True)
    assert {sum(moment) for moment in later} == {6 * ROWS}


def test_rows_that_failed_are_not_shown_as_coming_back(own: Journal) -> None:
    """What a part lacks has left its batch: it is in no state of a batch any more."""
    (batch,) = enter(own, "r-short", batches=1)
    move(own, batch, *DONE[:-1], at=NOW)
    (batch,) = own.batches.walk("r-short")
    claim = own.leases.claim_batch(batch.id, owner="a test", lease_s=600.0)
    assert claim is not None
    own.batches.transition(
        claim.batch, claim.token, DONE[-1], now=NOW + 90.0, part_rows=ROWS - 3, finished_at=NOW
    )
    series = read_run(own, "r-short", before=None, now=LATER).series
    assert series is not None
    last = {layer.state: layer.rows[-1] for layer in series.layers if layer.rows[-1]}
    assert last == {"published": ROWS - 3}


def test_the_run_s_page_shows_every_batch_and_what_comes_next(journal: Journal) -> None:
    page = read_run(journal, "r-run", before=None, now=NOW + 90.0)
    assert page.grid.letters == "wwwspp"
    assert page.grid.counts == {"planned": 2, "submitted": 1, "published": 3}
    (step,) = page.next
    assert (step.batch, step.at) == (3, NOW + 140.0)
    assert step.words == "batch 3: next poll in 50 s"
    assert page.spend.spent_usd == pytest.approx(3 * 1_000 * 0.075e-6)
    assert page.spend.points[-1] == pytest.approx(page.spend.spent_usd)
    assert page.spend.open_usd is not None
    assert page.spend.open_usd > 0.0
    assert page.quota is not None
    assert MODEL in page.quota.scope


def test_a_batch_that_waits_for_a_person_says_what_to_type(journal: Journal) -> None:
    page = read_run(journal, "r-person", before=None, now=LATER)
    assert page.grid.letters[0] == "I"
    assert page.grid.blocked == 1
    assert page.run.why is not None
    assert page.run.why.command == "embatch resolve r-person 0 --adopt NAME"
    (blocked,) = page.blocked
    assert (blocked.batch, blocked.resolvable) == (0, True)
    assert page.run.tone == "person"


def test_failures_are_told_by_reason_and_key(journal: Journal) -> None:
    """The most frequent first."""
    page = read_run(journal, "r-done", before=None, now=LATER)
    assert [(group.code, group.rows, group.kept) for group in page.failures] == [
        ("too_long", 4, 0),
        ("empty_text", 3, 3),
    ]
    assert [row.row for row in page.failures[0].examples] == [0, 2, 4, 6]
    batch = read_batch(journal, "r-done", 0, before=None, now=LATER)
    assert sum(group.rows for group in batch.failures) == 7
    assert read_batch(journal, "r-done", 1, before=None, now=LATER).failures == ()


def test_a_history_is_paged_without_gap_or_repeat(own: Journal) -> None:
    """Page after page, newest first, down to the first event."""
    batches = enter(own, "r-long", batches=12)
    for batch in batches:
        move(own, batch, *DONE, at=NOW)
    seen: list[int] = []
    before = None
    while True:
        timeline = read_run(own, "r-long", before=before, now=LATER).timeline
        assert len(timeline.events) <= PER_PAGE
        assert timeline.newest is (before is None)
        seen += [event.id for event in timeline.events]
        if timeline.older is None:
            break
        before = timeline.older
    assert seen == [event.id for event in reversed(own.events("r-long", limit=1_000))]
    assert len(seen) > 2 * PER_PAGE


def test_a_batch_s_page_has_its_jobs_bills_and_history(journal: Journal) -> None:
    page = read_batch(journal, "r-run", 1, before=None, now=LATER)
    assert (page.previous, page.following) == (0, 2)
    (attempt,) = page.attempts
    assert (attempt.remote_name, attempt.state) == ("batches/1", "ended")
    (bill,) = page.bills
    assert (bill.kind, bill.state, bill.tokens) == ("batch", "settled", 1_000)
    assert page.audit is not None
    assert page.audit.least_cosine == pytest.approx(0.9991)
    assert page.timeline.events[0].kind == "published"
    assert {event.batch for event in page.timeline.events} == {1}
    assert page.timings[1].seconds == pytest.approx(40.0)


def test_a_run_or_batch_that_is_not_there_is_said_so(journal: Journal) -> None:
    """Names and beginnings of ids are no addresses of pages."""
    for run_id in ("nope", "r-ru", "in doubt"):
        with pytest.raises(NotFoundError):
            read_run(journal, run_id, before=None, now=LATER)
    with pytest.raises(NotFoundError):
        read_batch(journal, "r-run", 99, before=None, now=LATER)


def test_workers_are_shown_as_they_beat_and_left(own: Journal) -> None:
    """A run that wants workers while none is alive is counted."""
    enter(own, "r-workers", execution="workers")
    assert read_workers(own, now=LATER).waiting_runs == 1
    about = {"host": "h", "pid": 1, "version": "1", "concurrency": 2}
    one = own.workers.register(execution="workers", queues=["io"], **about)  # type: ignore[arg-type]
    two = own.workers.register(execution="threads", queues=[], **about)  # type: ignore[arg-type]
    own.workers.leave(two, steps=5)
    page = read_workers(own, now=LATER)
    assert [(worker.id, worker.state) for worker in page.workers] == [
        (one, "alive"),
        (two, "stopped"),
    ]
    assert (page.alive, page.stopped, page.waiting_runs) == (1, 1, 0)


def test_no_page_holds_a_notification_s_target(journal: Journal) -> None:
    """They may hold secrets, and no page has a use for them."""
    pages = [
        read_runs(journal, **EVERYTHING, now=LATER),  # type: ignore[arg-type]
        *(read_run(journal, run.id, before=None, now=LATER) for run in journal.list_runs()),
    ]
    assert not any(NOTIFY in str(page.to_json()) for page in pages)


def test_an_output_that_cannot_be_looked_at_hides_no_run(tmp_path: Path) -> None:
    """The journal tells who works on it, its row says so, and the other runs stand beside it."""
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    enter(journal, "r-long", out=str(tmp_path / ("x" * 300)))
    enter(journal, "r-other")
    page = read_runs(journal, state=None, tag=None, search=None, page=1, now=LATER)
    said = {row.id: row.unseen for row in page.rows}
    assert said["r-other"] is None
    assert "cannot be looked at: File name too long" in str(said["r-long"])
    assert not read_status(journal, "r-long", now=LATER).worked
    assert "cannot be looked at" in drawn(page, "runs")
    run = read_run(journal, "r-long", before=None, now=LATER)
    assert "cannot be looked at" in drawn(run, "run")
    journal.close()


@pytest.mark.parametrize(
    ("event", "rows", "said"),
    [
        (None, None, "reading the input"),
        (RunEvent.FAILED, None, "it ended before its rows were counted"),
        (RunEvent.CANCELLED, None, "it ended before its rows were counted"),
        (RunEvent.CANCELLED, 0, "the input has no rows"),
    ],
)
def test_a_run_without_rows_says_why(
    own: Journal, event: RunEvent | None, rows: int | None, said: str
) -> None:
    """Only one that is being planned reads its input."""
    own.create_run(
        run_id="r-none", out="/nowhere/r-none", config={"alert_below_pct": 95.0}, now=NOW,
        space=Space(provider="gemini", model=MODEL, dims=768).to_json(),
    )  # fmt: skip
    own.leases.claim_planning("r-none", owner="a test", lease_s=1e9)
    if rows is not None:
        own.update_run("r-none", now=NOW, rows=rows)
    if event is not None:
        own.transition_run(
            "r-none", event, expected=RunState.PLANNING, now=NOW + 1.0, finished_at=NOW + 1.0
        )
    shown = drawn(read_runs(own, **EVERYTHING, now=LATER), "runs")  # type: ignore[arg-type]
    page = drawn(read_run(own, "r-none", before=None, now=LATER), "run")
    if rows is None:
        assert said in shown
        assert ("read for the first time" if event is None else said) in page
    else:
        assert said in page
    assert ("reading" in shown, "reading" in page) == (event is None, event is None)
    assert ("None yet" in page) == (event is None)


def test_a_step_long_overdue_is_said_to_be_late(own: Journal) -> None:
    """Not to come now; one that is in hand is under way."""
    batches = enter(own, "r-late", batches=2)
    move(own, batches[0], *SENT, at=NOW)
    (first, *_) = read_run(own, "r-late", before=None, now=NOW + 80.0 + 3_600.0).next
    assert "is due since" in first.words
    page = drawn(read_run(own, "r-late", before=None, now=NOW + 80.0 + 3_600.0), "run")
    assert "due since 1 h" in page
    assert own.leases.claim_batch(batches[0].id, owner="a test", lease_s=1e9) is not None
    held = read_run(own, "r-late", before=None, now=NOW + 7_200.0)
    assert held.next[0].under_way
    assert '<span class="at">now</span>' in drawn(held, "run")


def test_a_disk_that_hangs_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds one thread, and no page; when it answers again it is looked at again."""
    answers, looked = threading.Event(), list[Place]()

    def is_held(folder: Place) -> bool | None:
        looked.append(folder)
        if "hangs" in str(folder):
            answers.wait()
        return None

    monkeypatch.setattr(attendance, "is_held", is_held)
    monkeypatch.setattr(attendance, "LOOK_S", 0.05)
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    enter(journal, "r-hangs", out="/nowhere/hangs")
    enter(journal, "r-other")
    for _ in range(3):
        said = {row.id: row.unseen for row in read_runs(journal, **EVERYTHING, now=LATER).rows}  # type: ignore[arg-type]
        assert said["r-other"] is None
        assert "its disk does not answer" in str(said["r-hangs"])
    assert sum("hangs" in str(folder) for folder in looked) == 1
    answers.set()
    deadline = time.monotonic() + 30.0
    while read_status(journal, "r-hangs", now=LATER).unseen is not None:
        assert time.monotonic() < deadline
    journal.close()
