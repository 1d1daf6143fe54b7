"""Grids, times, words and tokens: what the dashboard computes without a journal."""

import pytest
from starlette.requests import Request

from embatch.config import Secret
from embatch.dashboard.app import _inside
from embatch.dashboard.estimates import eta_of
from embatch.dashboard.events import _WORDS, timeline
from embatch.dashboard.facts import GRID_LETTERS
from embatch.dashboard.pages import Memo, safe_address
from embatch.dashboard.rendering import whole
from embatch.dashboard.run_page import MOST_CELLS, grid_of
from embatch.dashboard.security import check_token, is_https, is_loopback
from embatch.dashboard.settings import Notices
from embatch.dashboard.views import ErrorPage, View
from embatch.errors import ConfigError
from embatch.journal.records import EventRecord
from embatch.journal.views import NumberedEvent
from embatch.types.state import BatchEvent, BatchState, RunEvent


def test_every_state_has_a_letter_of_its_own() -> None:
    """And a capital for blocked ones."""
    assert set(GRID_LETTERS) == {state.value for state in BatchState}
    assert len(set(GRID_LETTERS.values())) == len(GRID_LETTERS)
    assert all(letter.islower() for letter in GRID_LETTERS.values())


def test_a_grid_has_a_letter_a_batch_and_a_stop_for_a_gap() -> None:
    grid = grid_of([(3, "published", False), (4, "uploaded", True), (6, "planned", False)])
    assert (grid.letters, grid.first, grid.per_cell, grid.total) == ("wL.p", 3, 1, 3)
    assert grid.legend == {"p": "planned", "l": "uploaded", "w": "published"}
    assert grid.counts == {"planned": 1, "uploaded": 1, "published": 1}
    assert grid.blocked == 1
    assert grid_of([]).letters == ""


def test_a_cell_of_many_batches_shows_the_one_that_wants_a_look() -> None:
    """A blocked one before a failed one, that before those under way, and those before the rest."""
    states = [[number, "published", False] for number in range(MOST_CELLS * 3)]
    states[1][1], states[4][1], states[7][2] = "failed", "submitted", True
    grid = grid_of([(int(one), str(state), bool(held)) for one, state, held in states])
    assert (grid.per_cell, len(grid.letters)) == (3, MOST_CELLS)
    assert grid.letters[:4] == "fsWw"
    assert sum(grid.counts.values()) == MOST_CELLS * 3


def test_a_flag_in_a_sentence_is_not_broken_at_its_dashes() -> None:
    """And what stands around it is escaped."""
    said = whole("<b> embatch resolve r 1 --adopt NAME, or --absent: a--b")
    kept = '<span class="nowrap">--adopt</span> NAME, or <span class="nowrap">--absent</span>'
    assert said == f"&lt;b&gt; embatch resolve r 1 {kept}: a--b"


@pytest.mark.parametrize("left", [0, 1, 7_000])
@pytest.mark.parametrize("rate", [0.01, 3.0, 9_000.0])
@pytest.mark.parametrize("ended", [0, 4, 6, 61])
def test_no_estimate_is_outside_of_its_range(left: int, rate: float, ended: int) -> None:
    """Whatever the paces of late are against the present one."""
    lately = [(10, 1_000.0 - place**1.3) for place in range(ended)]
    eta = eta_of(left, rate, lately, now=1_000.0)
    assert eta.least_s <= eta.seconds <= eta.most_s


def test_an_eta_s_range_holds_it() -> None:
    """The paces of shorter and longer stretches are its bounds."""
    now = 1_000.0
    ended = [(10, now - 1.0 * place) for place in range(61)]
    steady = eta_of(100, 10.0, ended, now=now)
    assert (steady.seconds, steady.least_s, steady.most_s) == pytest.approx((10.0, 10.0, 10.0))
    assert steady.at == pytest.approx(now + 10.0)
    slowing = [(10, now - (1.0 if place < 20 else 0.25) * place) for place in range(61)]
    ranged = eta_of(100, 10.0, slowing, now=now)
    assert ranged.least_s < ranged.seconds <= ranged.most_s
    few = eta_of(100, 10.0, ended[:3], now=now)
    assert few.least_s < few.seconds < few.most_s


def test_every_event_of_a_run_or_batch_has_words() -> None:
    """But those whose words depend on whom they are about."""
    kinds = {event.value for event in (*RunEvent, *BatchEvent)}
    assert kinds - _WORDS.keys() == {"failed"}


def test_an_unknown_event_is_shown_by_its_name() -> None:
    """A newer embatch may have written it; what it holds besides plain values is left out."""
    event = EventRecord(
        id=1, run_id="r", batch_id=None, at=0.0, kind="turned_round", source=None, target=None,
        data={"error": "x" * 1_000, "text": "never shown", "rows": [1]},
    )  # fmt: skip
    (line,) = timeline([NumberedEvent(event=event, number=None)], before=None).events
    assert line.words == "turned round"
    assert list(line.data) == ["error"]
    assert len(line.data["error"]) < 310


def test_loopback_is_told_from_what_only_looks_like_it() -> None:
    for host in ("localhost", "127.0.0.1", "127.8.9.10", "::1"):
        assert is_loopback(host), host
    for host in (
        None,
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
    ):
        assert not is_loopback(host), host


def test_a_token_must_be_long_and_plain() -> None:
    """The message does not hold it."""
    check_token(None)
    check_token(Secret("0123456789abcdef"))
    for wrong in ("0123456789abcde", "0123456789 abcdefgh", "0123456789abcdefä", ""):
        with pytest.raises(ConfigError) as refused:
            check_token(Secret(wrong))
        assert not wrong or wrong not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        "",
        None,
        "//evil",
        "///evil",
        "/\\evil",
        "https://evil",
        "evil",
        "/login",
        "/logout",
        "/a\nb",
    ],
)
def test_a_login_goes_on_to_this_dashboard_alone(path: str | None) -> None:
    assert _inside(path) == "/"


def test_a_login_goes_on_to_the_page_that_was_asked_for() -> None:
    assert _inside("/runs/r1?before=3") == "/runs/r1?before=3"


def test_an_address_of_a_journal_holds_no_password() -> None:
    """Nor options, which may hold one."""
    assert (
        safe_address("postgresql+psycopg://me:pw@db:5433/x?password=pw") == "postgresql://db:5433/x"
    )
    assert safe_address("postgresql:///x?host=db&password=pw") == "postgresql:///x"
    assert safe_address("sqlite:////home/me/journal.db") == "/home/me/journal.db"


def test_a_notice_is_for_its_own_session() -> None:
    notices = Notices()
    ticket = notices.leave("mine", "done")
    assert notices.take("mine", ticket) == "done"
    assert notices.take("another", ticket) is None
    assert notices.take("", "") is None
    for number in range(1_000):
        notices.leave("mine", str(number))
    assert notices.take("mine", ticket) is None


def test_a_page_is_read_once_for_all_who_ask_at_once() -> None:
    """And anew when it is no longer fresh."""
    reads: list[int] = []

    def read() -> ErrorPage:
        reads.append(1)
        return ErrorPage(status=len(reads), title="", words="")

    memo = Memo()
    assert memo.get("a", read, 60.0)[0] is memo.get("a", read, 60.0)[0]
    memo.get("b", read, 60.0)
    assert len(reads) == 2
    memo._slots["a"].fresh_until = 0.0
    memo.get("a", read, 60.0)
    assert len(reads) == 3
    for number in range(1_000):
        memo.get(number, read, 60.0)
    assert len(memo._slots) <= 64


def test_a_page_read_before_the_latest_announcement_is_not_given_again() -> None:
    """One that was read while the announcement came neither: it may show what was before."""
    reads: list[int] = []
    announced = 5

    def read() -> ErrorPage:
        nonlocal announced
        reads.append(1)
        if len(reads) == 2:
            announced += 1
        return ErrorPage(status=len(reads), title="", words="")

    memo = Memo()

    def get() -> tuple[View, int]:
        return memo.get("a", read, 60.0, seq=lambda: announced, is_new=lambda seq: seq >= announced)

    first, seq = get()
    assert (first, seq) == (get()[0], 5)
    announced = 6
    assert get()[1] == 6  # the reading during which the seventh change came
    assert (get()[1], len(reads)) == (7, 3)
    assert (get()[1], len(reads)) == (7, 3)


@pytest.mark.parametrize(
    ("client", "said", "secure"),
    [("127.0.0.1", "https", True), ("127.0.0.1", "http", False), ("192.0.2.7", "https", False)],
)
def test_only_this_machine_may_say_that_tls_was_used(client: str, said: str, secure: bool) -> None:
    """What others write into their headers is not believed."""
    request = Request(
        {
            "type": "http", "scheme": "http", "path": "/", "server": ("h", 80),
            "client": (client, 1), "headers": [(b"x-forwarded-proto", said.encode())],
        }
    )  # fmt: skip
    assert is_https(request) is secure
