"""The journal's contract for audits: evidence, what is audited again, what copies wait for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from embatch.errors import TransitionRefusedError
from embatch.journal.audits import AuditedRow, evidence, raise_audits, withdraw_copies
from embatch.journal.leases import Claim
from embatch.journal.records import BatchRecord, NewBatch
from embatch.journal.store import Journal
from embatch.types.state import BatchEvent, BatchState

NOW = 1_000.0
RUN = "r1"
TO_READY = (
    BatchEvent.UPLOAD_STARTED,
    BatchEvent.UPLOAD_FINISHED,
    BatchEvent.SUBMIT_INTENDED,
    BatchEvent.SUBMIT_CONFIRMED,
    BatchEvent.RESULTS_READY,
)
PART = {"part": "p", "part_sha256": "s", "part_rows": 4, "part_row_min": 0, "part_row_max": 3}


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def start(journal: Journal, *batches: NewBatch, plan: Any = None, **config: Any) -> None:
    journal.create_run(
        run_id=RUN, out="out", config={"audit": 8, **config}, space={"provider": "x"}, now=NOW
    )
    token = journal.leases.claim_planning(RUN, owner="me", lease_s=60)
    assert token is not None
    journal.batches.add_planned(
        RUN, token, batches=batches, failures=[], plan=plan or {"phase": "stage"}, now=NOW
    )


def embed(first: int, rows: int = 4) -> NewBatch:
    return NewBatch(kind="embed", items=rows, row_min=first, row_max=first + rows - 1, stage="s")


def copies(owner: int, row: int) -> NewBatch:
    return NewBatch(
        kind="copies",
        items=1,
        row_min=row,
        row_max=row,
        owner_min=owner,
        owner_max=owner,
        stage="c",
    )


def claim(journal: Journal) -> Claim | None:
    return journal.leases.claim_step(RUN, owner="me", lease_s=60, now=NOW, max_in_flight=9)


def take(journal: Journal, held: Claim, *events: BatchEvent, **facts: Any) -> BatchRecord:
    """Moves a batch by some events, the facts with the last one."""
    batch = held.batch
    for event in events:
        last = facts if event is events[-1] else {}
        batch = journal.batches.transition(batch, held.token, event, now=NOW, **last)
    return batch


def published(journal: Journal, *, audited: int | None) -> BatchRecord:
    """The next batch for the provider, brought to its end."""
    held = claim(journal)
    assert held is not None
    take(journal, held, *TO_READY)
    ready = Claim(batch=journal.batches.get(held.batch.id), token=held.token)
    batch = take(
        journal, ready, BatchEvent.COLLECTED, BatchEvent.PUBLISHED, audited=audited, **PART
    )
    journal.leases.release(batch.id, held.token, next_at=NOW)
    return batch


def raise_by(journal: Journal, held: Claim, rows: int) -> None:
    """Another batch of the run is put aside, and raises the run's audits."""
    take(journal, held, *TO_READY)
    ready = Claim(batch=journal.batches.get(held.batch.id), token=held.token)
    change = raise_audits(RUN, rows)
    take(journal, ready, BatchEvent.MISALIGNED, also=[change])
    journal.leases.release(held.batch.id, held.token, next_at=NOW + 1e6)


@pytest.mark.parametrize(
    ("audited", "raised", "audit", "again"),
    [
        (2, 200, 8, True),
        (2, 3, 8, True),
        (2, 2, 8, False),
        (4, 200, 8, False),
        (None, 200, 8, True),
        (2, 200, "off", False),
    ],
)
def test_published_batches_that_were_audited_too_little_need_a_step(
    journal: Journal, audited: int | None, raised: int, audit: object, again: bool
) -> None:
    """Fewer rows than the run asks for by now, and than the part has."""
    start(journal, embed(0), embed(4), audit=audit)
    first = published(journal, audited=audited)
    second = claim(journal)
    assert second is not None
    raise_by(journal, second, raised)
    assert journal.get_run(RUN).audit_rows == raised
    found = claim(journal)
    assert (found is not None) is again
    if found is not None:
        assert found.batch.id == first.id
        journal.batches.note(found.batch, found.token, now=NOW, audited=4)
        journal.leases.release(found.batch.id, found.token, next_at=NOW)
        assert claim(journal) is None


def test_a_run_is_not_over_while_a_published_batch_is_doubtful(journal: Journal) -> None:
    """It has a step left, which is due."""
    start(journal, embed(0), embed(4))
    first = published(journal, audited=2)
    second = claim(journal)
    assert second is not None
    raise_by(journal, second, 200)
    held = journal.leases.claim_batch(second.batch.id, owner="me", lease_s=60)
    assert held is not None
    take(journal, held, BatchEvent.GAVE_WAY)
    journal.leases.release(held.batch.id, held.token, next_at=NOW)
    assert journal.leases.has_steps(RUN)
    assert journal.leases.next_due(RUN) == NOW
    doubtful = claim(journal)
    assert doubtful is not None
    assert doubtful.batch.id == first.id
    journal.batches.note(doubtful.batch, doubtful.token, now=NOW, audited=4)
    journal.leases.release(doubtful.batch.id, doubtful.token, next_at=NOW)
    assert not journal.leases.has_steps(RUN)


@pytest.mark.parametrize("state", [BatchState.READY, BatchState.COLLECTED, BatchState.PUBLISHED])
def test_copies_of_rows_taken_back_wait_anew_and_their_steps_are_void(
    journal: Journal, state: BatchState
) -> None:
    """Whatever a process has in hand of them is refused; other copies stay."""
    start(journal, embed(0), embed(4), copies(2, 8), copies(5, 9))
    owner = published(journal, audited=2)
    published(journal, audited=2)
    steps = {
        BatchState.READY: [BatchEvent.OWNERS_FINAL],
        BatchState.COLLECTED: [BatchEvent.OWNERS_FINAL, BatchEvent.COLLECTED],
        BatchState.PUBLISHED: [
            *(BatchEvent.OWNERS_FINAL, BatchEvent.COLLECTED, BatchEvent.PUBLISHED)
        ],
    }[state]
    mine, other = claim(journal), claim(journal)
    assert mine is not None
    assert other is not None
    stands = take(journal, mine, *steps, **(PART if len(steps) > 1 else {}))
    take(journal, other, BatchEvent.OWNERS_FINAL)
    held = journal.leases.claim_batch(owner.id, owner="me", lease_s=60)
    assert held is not None
    change = withdraw_copies(RUN, 0, 3, now=NOW)
    take(journal, held, BatchEvent.MISALIGNED, also=[change])
    withdrawn = journal.batches.get(mine.batch.id)
    assert withdrawn.state is BatchState.PLANNED
    assert (withdrawn.part, withdrawn.part_sha256, withdrawn.lease_token) == (None, None, None)
    assert journal.batches.get(other.batch.id).state is BatchState.READY
    late = {
        BatchState.READY: BatchEvent.COLLECTED,
        BatchState.COLLECTED: BatchEvent.PUBLISHED,
        BatchState.PUBLISHED: BatchEvent.MISALIGNED,
    }[state]
    with pytest.raises(TransitionRefusedError):
        journal.batches.transition(stands, mine.token, late, now=NOW)


def test_evidence_is_kept_with_the_change_or_not_at_all(journal: Journal) -> None:
    """More than a page of it, each row once; a second audit of a row replaces the first."""
    start(journal, embed(0, rows=3_000))
    held = claim(journal)
    assert held is not None
    take(journal, held, *TO_READY)

    def rows(cosine: float) -> list[AuditedRow]:
        return [
            AuditedRow(
                run_id=RUN,
                batch_id=held.batch.id,
                row=row,
                key=f"k{row}",
                cosine=cosine,
                passed=cosine > 0.9,
                at=NOW,
            )
            for row in range(2_500)
        ]

    elsewhere = Claim(batch=replace(held.batch, state=BatchState.PUBLISHED), token=held.token)
    with pytest.raises(TransitionRefusedError):
        take(journal, elsewhere, BatchEvent.MISALIGNED, also=[evidence(rows(0.1))])
    assert list(journal.audits.of_run(RUN)) == []
    ready = Claim(batch=journal.batches.get(held.batch.id), token=held.token)
    take(journal, ready, BatchEvent.MISALIGNED, also=[evidence(rows(0.1))])
    journal.audits.record(RUN, rows(0.95)[:1], audit_rows=200)
    assert journal.get_run(RUN).audit_rows == 200
    found = list(journal.audits.of_run(RUN))
    assert [row.row for row in found] == list(range(2_500))
    assert [found[0].passed, found[1].passed] == [True, False]


@pytest.mark.parametrize(("probe", "held_back"), [(True, True), (False, False)])
def test_the_probe_holds_new_batches_back_unless_the_config_says_otherwise(
    journal: Journal, probe: bool, held_back: bool
) -> None:
    """While it is under way, and while its child waits; published, it lets them go."""
    plan = {"phase": "stage", "probe_row": 3}
    start(journal, embed(0), embed(4), plan=plan, probe=probe)
    assert journal.leases.is_probing(RUN) is held_back
    first = claim(journal)
    assert first is not None
    assert (claim(journal) is None) is held_back
    if held_back:
        child = NewBatch(kind="embed", items=2, row_min=1, row_max=2, stage="s", delay_s=50.0)
        take(journal, first, *TO_READY)
        ready = Claim(batch=journal.batches.get(first.batch.id), token=first.token)
        take(journal, ready, BatchEvent.GAVE_WAY, children=[child])
        assert claim(journal) is None
        assert journal.leases.next_due(RUN) == NOW + 50
