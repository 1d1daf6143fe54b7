"""Leases are renewed while steps run, and a step knows when its own is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embatch.execution.keeper import LeaseKeeper
from embatch.journal.store import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal with the run r1."""
    opened = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    opened.create_run(run_id="r1", out="out", config={}, space={}, now=1.0)
    yield opened
    opened.close()


def test_a_held_lease_outlives_its_time(journal: Journal) -> None:
    """What ran out is renewed, so that nobody else gets it."""
    token = journal.leases.claim_planning("r1", owner="me", lease_s=-1)
    assert token is not None
    keeper = LeaseKeeper(journal.leases, lease_s=60)
    with keeper.hold(token) as lease:
        keeper.renew()
        assert lease.is_held()
        assert journal.leases.claim_planning("r1", owner="other", lease_s=60) is None


def test_a_lease_that_was_taken_over_is_known_as_lost(journal: Journal) -> None:
    """A process that slept over its lease learns so, and takes nothing back."""
    token = journal.leases.claim_planning("r1", owner="sleeper", lease_s=-1)
    assert token is not None
    keeper = LeaseKeeper(journal.leases, lease_s=60)
    with keeper.hold(token) as lease:
        other = journal.leases.claim_planning("r1", owner="other", lease_s=60)
        keeper.renew()
        assert not lease.is_held()
    journal.leases.release_planning("r1", token)
    journal.leases.renew([str(other)], lease_s=60)


def test_the_end_of_a_step_is_no_loss(journal: Journal) -> None:
    """A lease that its own step gave back is not renewed and not mourned."""
    token = journal.leases.claim_planning("r1", owner="me", lease_s=60)
    assert token is not None
    keeper = LeaseKeeper(journal.leases, lease_s=60)
    with keeper.hold(token) as lease:
        journal.leases.release_planning("r1", token)
    keeper.renew()
    assert lease.is_held()
