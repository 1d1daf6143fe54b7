"""What people read of the quota."""

from pathlib import Path

import pytest

from embatch.journal.quotas import Ruling
from embatch.journal.store import Journal
from embatch.runs.quota import Belief, Ceiling
from embatch.runs.quota_status import age, amount, read_quota

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(0, "≈ 0"), (950, "≈ 950"), (2_140_000, "≈ 2.1 M"), (300_000, "≈ 300 k"), (3e9, "≈ 3.0 G")],
)
def test_tokens_are_told_roughly(tokens: int, words: str) -> None:
    """They are estimates: two or three figures are all that they bear."""
    assert amount(tokens) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (40, "40 s"), (730, "12 min"), (3 * 3600, "3 h"), (50 * 3600, "2 days")],
)
def test_ages_are_told_in_one_unit(seconds: float, words: str) -> None:
    """As people say them."""
    assert age(seconds) == words


def test_a_run_without_jobs_has_no_quota(tmp_path: Path) -> None:
    """Nothing was sent: nothing is known of where it would count."""
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    assert read_quota(journal, "r1", now=NOW) is None
    journal.close()


def test_the_belief_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling, what is in flight, and when a create was last refused."""
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    monkeypatch.setattr(journal.quotas, "scopes_of", lambda _: ["gemini/key/model"])
    belief = Belief(
        tokens=Ceiling(most=2_140_000), refused_at=NOW - 730, hold="day", hold_until=NOW + 60
    )
    journal.quotas.change(
        "gemini/key/model", lambda _, __: Ruling(belief=belief.to_json()), now=NOW
    )
    found = read_quota(journal, "r1", now=NOW)
    assert found is not None
    assert found.words == "ceiling ≈ 2.1 M tokens, ≈ 0 in 0 jobs in flight, last 429 12 min ago"
    assert (found.waits_for, found.waits_until) == ("day", NOW + 60)
    later = read_quota(journal, "r1", now=NOW + 61)
    assert later is not None
    assert later.waits_for is None
    journal.close()
