"""The journal's contract: guarded states, leases, all-or-nothing entries. One suite a database."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from embatch.errors import (
    ConfigError,
    JournalError,
    LeaseLostError,
    NotFoundError,
    TransitionRefusedError,
)
from embatch.journal.connecting import open_engine
from embatch.journal.database import Database
from embatch.journal.leases import Claim
from embatch.journal.records import Failure, NewBatch
from embatch.journal.store import Journal
from embatch.types.state import (
    BATCH_TRANSITIONS,
    RUN_TRANSITIONS,
    BatchEvent,
    BatchState,
    RunEvent,
    RunState,
)

NOW = 1_000.0
NEWER = r"schema 9999, this embatch knows \d{4}: update embatch"


@pytest.fixture
def url(journal_url: str) -> str:
    return journal_url


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    opened = Journal.open(url)
    yield opened
    opened.close()


def start(journal: Journal, run_id: str = "r1", **values: object) -> str:
    journal.create_run(
        run_id=run_id,
        out=f"{run_id}-out",
        config={"alert_below_pct": 95.0},
        space={"provider": "local"},
        now=NOW,
        **values,  # type: ignore[arg-type]
    )
    token = journal.leases.claim_planning(run_id, owner="me", lease_s=60)
    assert token is not None
    return token


def embed(rows: int = 4, first: int = 0) -> NewBatch:
    return NewBatch(kind="embed", items=rows, row_min=first, row_max=first + rows - 1, stage="s")


def plan(journal: Journal, token: str, *batches: NewBatch, run_id: str = "r1") -> None:
    journal.batches.add_planned(
        run_id, token, batches=batches, failures=[], plan={"phase": "stage"}, now=NOW
    )


def claim(
    journal: Journal, run_id: str = "r1", *, now: float = NOW, limit: int = 9
) -> Claim | None:
    return journal.leases.claim_step(run_id, owner="me", lease_s=60, now=now, max_in_flight=limit)


def claimed(journal: Journal, run_id: str = "r1") -> Claim:
    found = claim(journal, run_id)
    assert found is not None
    return found


def test_a_run_entered_twice_is_one_run(journal: Journal) -> None:
    """Two starters of one output meet in one run."""
    start(journal, name="first")
    again = journal.create_run(run_id="r1", out="x", config={}, space={}, now=NOW, name="second")
    assert again.name == "first"
    assert len(journal.list_runs()) == 1


def test_a_run_is_found_by_id_name_and_prefix(journal: Journal) -> None:
    """People type what they remember."""
    start(journal, "rabc", name="nightly")
    assert journal.get_run("rabc").id == journal.get_run("nightly").id == "rabc"
    assert journal.get_run("rab").id == "rabc"
    start(journal, "rabd")
    with pytest.raises(NotFoundError, match="more than one"):
        journal.get_run("rab")
    with pytest.raises(NotFoundError, match="no run 'zzz'"):
        journal.get_run("zzz")


def test_runs_are_listed_by_tags(journal: Journal) -> None:
    """All tags asked for must be there, with their values."""
    start(journal, "r1", tags={"team": "a", "env": "prod"})
    start(journal, "r2", tags={"team": "b"})
    assert [run.id for run in journal.list_runs(tags={"team": "a"})] == ["r1"]
    assert journal.list_runs(tags={"team": "a", "env": "dev"}) == []


def test_planning_enters_batches_failures_and_position_together(journal: Journal) -> None:
    """A planning step is all or nothing, and void once the lease is gone."""
    token = start(journal)
    journal.batches.add_planned(
        "r1",
        token,
        batches=[embed(), embed(first=4)],
        failures=[Failure(row=9, key="k9", code="empty_text", message="empty", attempts=0)],
        plan={"phase": "stage", "position": 10},
        now=NOW,
    )
    assert [batch.number for batch in journal.batches.walk("r1")] == [0, 1]
    assert [failure.key for failure in journal.failures("r1")] == ["k9"]
    assert journal.get_run("r1").plan == {"phase": "stage", "position": 10}
    journal.leases.release_planning("r1", token)
    with pytest.raises(LeaseLostError):
        plan(journal, token, embed(first=8))
    assert len(list(journal.batches.walk("r1"))) == 2


def test_only_one_process_plans(journal: Journal) -> None:
    """The planning lease is exclusive until it is released or runs out."""
    token = start(journal)
    assert journal.leases.claim_planning("r1", owner="other", lease_s=60) is None
    journal.leases.release_planning("r1", token)
    assert journal.leases.claim_planning("r1", owner="other", lease_s=60) is not None


def path_to(state: BatchState) -> list[BatchState]:
    """The shortest way from `planned` along the table, `state` the last."""
    paths = {BatchState.PLANNED: [BatchState.PLANNED]}
    while state not in paths:
        for (source, _), target in BATCH_TRANSITIONS.items():
            if source in paths and target not in paths:
                paths[target] = [*paths[source], target]
    return paths[state]


@pytest.mark.parametrize("state", list(BatchState))
def test_the_database_obeys_the_transition_table(
    state: BatchState, journal: Journal, url: str
) -> None:
    """A trigger refuses what types.state does not hold, even from outside embatch."""
    plan(journal, start(journal), embed())
    allowed = {target for (source, _), target in BATCH_TRANSITIONS.items() if source is state}
    move = text("UPDATE batches SET state = :state")
    outside = open_engine(url)
    for step in path_to(state):
        with outside.begin() as raw:
            raw.execute(move, {"state": step.value})
    for target in BatchState:
        with outside.connect() as raw:
            if target in allowed or target is state:
                raw.execute(move, {"state": target.value})
            else:
                with pytest.raises(DBAPIError, match="batch cannot change"):
                    raw.execute(move, {"state": target.value})
            raw.rollback()
    outside.dispose()


def test_a_transition_needs_the_state_that_was_read(journal: Journal) -> None:
    """A step that read an old state is refused, and changes nothing."""
    plan(journal, start(journal), embed())
    held = claimed(journal)
    journal.batches.transition(held.batch, held.token, BatchEvent.UPLOAD_STARTED, now=NOW)
    with pytest.raises(TransitionRefusedError, match="is uploading, not planned"):
        journal.batches.transition(held.batch, held.token, BatchEvent.UPLOAD_STARTED, now=NOW)


def test_a_lost_lease_is_refused(journal: Journal) -> None:
    """Who lost the lease writes nothing, though the state is still the one it read."""
    plan(journal, start(journal), embed())
    first = claimed(journal)
    journal.leases.release(first.batch.id, first.token, next_at=NOW)
    second = claimed(journal)
    with pytest.raises(LeaseLostError):
        journal.batches.transition(first.batch, first.token, BatchEvent.UPLOAD_STARTED, now=NOW)
    with pytest.raises(LeaseLostError):
        journal.batches.note(first.batch, first.token, now=NOW, succeeded=1)
    journal.batches.transition(second.batch, second.token, BatchEvent.UPLOAD_STARTED, now=NOW)


def test_a_transition_brings_children_and_failures_or_nothing(journal: Journal) -> None:
    """Children and failures stand exactly when the change of state does."""
    plan(journal, start(journal), embed())
    held = claimed(journal)
    failure = Failure(row=1, key="b", code="x", message="m", attempts=1, batch_id=held.batch.id)
    moved = journal.batches.transition(
        held.batch, held.token, BatchEvent.UPLOAD_STARTED, now=NOW, failures=[failure]
    )
    assert [found.row for found in journal.failures("r1")] == [1]
    with pytest.raises(TransitionRefusedError):
        journal.batches.transition(
            held.batch, held.token, BatchEvent.UPLOAD_STARTED, now=NOW, children=[embed()]
        )
    assert [batch.id for batch in journal.batches.walk("r1")] == [moved.id]


def test_a_dead_owners_leases_are_freed_at_once(journal: Journal) -> None:
    """After kill -9 a restart need not wait for leases to run out."""
    plan(journal, start(journal), embed())
    claimed(journal)
    assert claim(journal) is None
    assert journal.leases.release_dead(lambda owner: owner == "me") == 2
    assert claim(journal) is not None


def test_an_expired_lease_is_taken_over(journal: Journal) -> None:
    """A holder that is silent for too long loses its batch to the next."""
    plan(journal, start(journal), embed())
    first = journal.leases.claim_step("r1", owner="a", lease_s=-1, now=NOW, max_in_flight=9)
    second = claimed(journal)
    assert first is not None
    assert second.batch.id == first.batch.id
    with pytest.raises(LeaseLostError):
        journal.leases.renew([first.token], lease_s=60)
    journal.leases.renew([second.token], lease_s=60)


def test_new_batches_wait_for_room_at_the_provider(journal: Journal) -> None:
    """No more than `max_in_flight` batches occupy the provider."""
    plan(journal, start(journal), embed(), embed(first=4))
    first = claimed(journal)
    moved = journal.batches.transition(first.batch, first.token, BatchEvent.UPLOAD_STARTED, now=NOW)
    journal.leases.release(moved.id, first.token, next_at=NOW + 100)
    assert claim(journal, limit=1) is None
    second = claim(journal, limit=2)
    assert second is not None
    assert second.batch.number == 1


def test_copies_wait_until_no_earlier_batch_is_open(journal: Journal) -> None:
    """Copies are handed out once nothing unfinished can still own their texts."""
    copies = NewBatch(
        kind="copies", items=1, row_min=9, row_max=9, owner_min=2, owner_max=2, stage="c"
    )
    plan(journal, start(journal), embed(), embed(first=4), copies)
    first = claimed(journal)
    assert claimed(journal).batch.kind == "embed"
    assert claim(journal) is None
    batch, token = first.batch, first.token
    for event in (
        BatchEvent.UPLOAD_STARTED,
        BatchEvent.UPLOAD_FINISHED,
        BatchEvent.SUBMIT_INTENDED,
        BatchEvent.SUBMIT_CONFIRMED,
        BatchEvent.RESULTS_READY,
        BatchEvent.COLLECTED,
        BatchEvent.PUBLISHED,
    ):
        batch = journal.batches.transition(batch, token, event, now=NOW)
    found = claim(journal)
    assert found is not None
    assert found.batch.kind == "copies"


def test_next_due_is_the_earliest_step_that_nobody_has_in_hand(journal: Journal) -> None:
    """Sleepers wake for the earliest free step, and not at all for what is leased or done."""
    assert journal.leases.next_due("r1") is None
    assert not journal.leases.has_steps("r1")
    plan(journal, start(journal), embed(), embed(first=4))
    assert journal.leases.next_due("r1") == NOW
    for wait_s in (50, 20):
        held = claimed(journal)
        event = BatchEvent.UPLOAD_STARTED
        moved = journal.batches.transition(
            held.batch, held.token, event, now=NOW, attempt=1, label=f"label {wait_s}"
        )
        assert journal.leases.next_due("r1") == (None if wait_s == 50 else NOW + 50)
        journal.leases.release(moved.id, held.token, next_at=NOW + wait_s)
    assert journal.leases.next_due("r1") == NOW + 20
    assert journal.leases.has_steps("r1")


def test_cancelling_voids_leases_of_batches_and_planning(journal: Journal) -> None:
    """A step or a planner under way when its run is cancelled is refused afterwards."""
    token = start(journal)
    plan(journal, token, embed(), embed(first=4))
    held = claimed(journal)
    moved = journal.batches.transition(
        held.batch, held.token, BatchEvent.UPLOAD_STARTED, now=NOW, input_ref="ref"
    )
    journal.transition_run("r1", RunEvent.CANCELLED, expected=RunState.PLANNING, now=NOW)
    states = [batch.state for batch in journal.batches.walk("r1")]
    assert states == [BatchState.CANCELLED] * 2
    assert claim(journal) is None
    with pytest.raises(LeaseLostError):
        plan(journal, token, embed(first=8))
    with pytest.raises(TransitionRefusedError):
        journal.batches.transition(moved, held.token, BatchEvent.UPLOAD_FINISHED, now=NOW)


def test_threads_never_share_a_batch(journal: Journal) -> None:
    """Claims from many threads hand each batch out once."""
    plan(journal, start(journal), *(embed(first=4 * n) for n in range(40)))
    got: list[int] = []

    def take() -> None:
        while (found := claim(journal, limit=100)) is not None:
            got.append(found.batch.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 40


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(st.sampled_from(list(BatchEvent)), max_size=14))
def test_any_sequence_of_events_follows_the_table(
    events: list[BatchEvent], journal: Journal
) -> None:
    """Whatever is tried, the journal holds the state that the table leads to."""
    journal.delete_run("r1")
    plan(journal, start(journal), embed())
    held = claimed(journal)
    batch, expected = held.batch, BatchState.PLANNED
    for event in events:
        target = BATCH_TRANSITIONS.get((expected, event))
        if target is None:
            with pytest.raises(KeyError):
                journal.batches.transition(batch, held.token, event, now=NOW)
        else:
            batch = journal.batches.transition(batch, held.token, event, now=NOW)
            expected = target
        assert journal.batches.get(batch.id).state is expected


def test_run_transitions_are_guarded(journal: Journal) -> None:
    """A run moves only from the state that was expected, along its table."""
    start(journal)
    journal.transition_run("r1", RunEvent.PLANNED, expected=RunState.PLANNING, now=NOW)
    with pytest.raises(TransitionRefusedError, match="is running, not planning"):
        journal.transition_run("r1", RunEvent.PLANNED, expected=RunState.PLANNING, now=NOW)
    with pytest.raises(KeyError):
        journal.transition_run("r1", RunEvent.PLANNED, expected=RunState.RUNNING, now=NOW)
    kinds = [event.kind for event in journal.events("r1")]
    assert kinds == ["created", "planned"]


def test_every_state_can_be_reached_and_left() -> None:
    """The tables have no island: a batch that was split and a complete run alone lead nowhere."""
    targets = set(BATCH_TRANSITIONS.values()) | {BatchState.PLANNED}
    sources = {source for source, _ in BATCH_TRANSITIONS}
    assert targets == set(BatchState)
    assert set(BatchState) - sources == {BatchState.SPLIT}
    run_targets = set(RUN_TRANSITIONS.values()) | {RunState.PLANNING}
    assert run_targets == set(RunState)
    assert set(RunState) - {source for source, _ in RUN_TRANSITIONS} == {RunState.COMPLETED}


def test_forgetting_a_run_leaves_nothing_of_it(journal: Journal, url: str) -> None:
    """Batches, failures and events go with their run."""
    plan(journal, start(journal), embed())
    journal.delete_run("r1")
    database = Database.open(url)
    with database.read() as connection:
        for table in ("runs", "batches", "failures", "events", "jobs", "ledger", "audits"):
            count = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            assert count == 0
    database.close()


def test_a_newer_journal_is_refused(url: str, journal: Journal) -> None:
    """An older embatch does not touch a journal that it does not understand."""
    outside = open_engine(url)
    with outside.begin() as raw:
        raw.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    outside.dispose()
    with pytest.raises(JournalError, match=NEWER):
        Journal.open(url)


def test_a_journal_that_grows_newer_is_refused_to_those_who_have_it_open(
    url: str, journal: Journal
) -> None:
    """A process that worked on before another brought the schema up takes no step after."""
    plan(journal, start(journal), embed())
    outside = open_engine(url)
    with outside.begin() as raw:
        raw.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    outside.dispose()
    with pytest.raises(JournalError, match=NEWER):
        claim(journal)


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    """The error says which file, and how to name another."""
    path = tmp_path / "letter.txt"
    path.write_text("dear journal " * 100)
    with pytest.raises(JournalError, match="--journal"):
        Journal.open(f"sqlite:///{path}")
    with pytest.raises(ConfigError, match="not usable"):
        Journal.open("nonsense://x")
