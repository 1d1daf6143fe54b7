"""Who may look, who may act, and what is never told: over real sockets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboards import TOKEN, Answer, Visitor, fill, visited
from embatch.dashboard import security
from embatch.journal.store import Journal
from embatch.types.state import RunState

LOOKED_AT = (
    "/", "/runs.json", "/runs/r-run", "/runs/r-run.json", "/runs/r-run/batches/0", "/workers",
    "/provider", "/live", "/metrics", "/runs/r-run/do/cancel", "/nowhere",
)  # fmt: skip
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(made)
    fill(journal)
    journal.close()
    return made


@pytest.fixture
def visitor(url: str) -> Iterator[Visitor]:
    """Of a dashboard on loopback, without a token."""
    with visited(url) as opened:
        yield opened


@pytest.fixture
def guarded(url: str) -> Iterator[Visitor]:
    """Of a dashboard that asks for a token."""
    with visited(url, token=TOKEN) as opened:
        yield opened


def state_of(url: str, run_id: str) -> RunState:
    journal = Journal.open(url)
    state = journal.get_run(run_id).state
    journal.close()
    return state


def check_headers(answer: Answer) -> None:
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert "server" not in {name.lower() for name in answer.headers}


def test_without_the_token_everything_is_401(guarded: Visitor) -> None:
    """Pages, twins, streams, metrics and actions; a wrong bearer or cookie too."""
    for path in LOOKED_AT:
        for headers in ({}, {"accept": "application/json"}, {"authorization": "Bearer wrong"}):
            answer = guarded.get(path, **headers)
            assert answer.status in (401, 429), (path, headers)
            assert "r-run" not in answer.text.replace(path, "")
            check_headers(answer)
            if answer.status == 429:
                break
    guarded.cookies[next(iter(guarded.cookies))] = "made-up"
    assert guarded.get("/runs.json").status == 401
    assert guarded.post("/runs/r-run/do/cancel", {}).status == 401
    assert guarded.get("/static/style.css").status == 200


def test_the_token_opens_by_login_and_by_header(guarded: Visitor, url: str) -> None:
    """The cookie is for this site and no script; the token stands on no page and in no address."""
    asked = guarded.get("/runs/r-run?before=9")
    assert (asked.status, asked.headers["WWW-Authenticate"]) == (401, 'Bearer realm="embatch"')
    assert 'value="/runs/r-run?before=9"' in asked.text
    came = guarded.post("/login", {"token": TOKEN, "next": "/runs/r-run"})
    assert (came.status, came.headers["Location"]) == (303, "/runs/r-run")
    cookie = came.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    for path in ("/", "/runs/r-run", "/runs.json", "/provider"):
        shown = guarded.get(path)
        assert shown.status == 200
        assert TOKEN not in shown.text
        assert TOKEN not in str(shown.headers)
    left = guarded.post("/logout", {"csrf": guarded.get("/").csrf}, sec_fetch_site="same-origin")
    assert left.status == 303
    assert guarded.get("/").status == 401
    script = Visitor(guarded.url)
    assert script.get("/runs.json", authorization=f"Bearer {TOKEN}").status == 200
    assert script.get(f"/runs.json?token={TOKEN}").status == 401
    script.post("/runs/r-failed/do/resume", {}, authorization=f"Bearer {TOKEN}")
    assert state_of(url, "r-failed") is RunState.PLANNING


def test_a_login_leads_nowhere_else(guarded: Visitor) -> None:
    """Addresses of other sites are no place to go on to."""
    for away in ("//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:1"):
        came = guarded.post("/login", {"token": TOKEN, "next": away})
        assert came.headers["Location"] == "/", away


def test_guessing_is_slowed_and_stopped(guarded: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten wrong tokens of an address it is told to wait; the right one always opens."""
    monkeypatch.setattr(security, "WRONG_S", 0.0)
    for guess in range(10):
        assert guarded.post("/login", {"token": f"wrong-{guess}"}).status == 401
    refused = guarded.post("/login", {"token": "wrong-10"})
    assert (refused.status, refused.headers["Retry-After"]) == (429, "300")
    assert guarded.get("/runs.json", authorization="Bearer wrong-11").status == 429
    assert guarded.get("/runs.json", authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.post("/login", {"token": TOKEN}).status == 303


def test_a_proxy_on_this_machine_makes_the_cookie_secure(guarded: Visitor) -> None:
    """It says that the browser came by TLS; without a word of it the cookie goes by HTTP too."""
    plain = guarded.post("/login", {"token": TOKEN})
    assert "secure" not in plain.headers["Set-Cookie"].lower()
    behind = guarded.post("/login", {"token": TOKEN}, x_forwarded_proto="https")
    assert "secure" in behind.headers["Set-Cookie"].lower()


def test_a_post_of_another_site_does_nothing(visitor: Visitor, url: str) -> None:
    """Whatever it knows but the page's own word; and the word alone does not do across sites."""
    path = "/runs/r-run/do/cancel"
    word = visitor.get(path).csrf
    attempts = [
        ({}, {}),
        ({"csrf": "0" * 64}, {"sec_fetch_site": "same-origin"}),
        ({"csrf": word}, {"sec_fetch_site": "cross-site"}),
        ({"csrf": word}, {"sec_fetch_site": "same-site"}),
        ({"csrf": word}, {"origin": "https://evil.example"}),
        ({"csrf": word}, {"origin": "null"}),
    ]
    for fields, headers in attempts:
        assert visitor.post(path, fields, **headers).status == 403, (fields, headers)
    stranger = Visitor(visitor.url)
    assert stranger.post(path, {"csrf": word}).status == 403
    assert stranger.get(path).csrf != word
    assert state_of(url, "r-run") is RunState.RUNNING
    assert visitor.get(path).status == 200
    assert state_of(url, "r-run") is RunState.RUNNING


def test_other_names_for_this_machine_are_refused(visitor: Visitor) -> None:
    """A site whose name is made to lead here reads nothing."""
    port = visitor.url.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0", ""):
        answer = visitor.get("/runs.json", host=host)
        assert answer.status == 403, host
        check_headers(answer)
    for host in (f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert visitor.get("/runs.json", host=host).status == 200, host


def test_headers_stand_on_every_answer(visitor: Visitor) -> None:
    """On pages, files, errors and refusals; pages are kept by no cache."""
    for path in ("/", "/nowhere", "/static/style.css", "/static/nothing", "/healthz", "/runs.json"):
        answer = visitor.get(path)
        check_headers(answer)
        if not path.startswith("/static/style"):
            assert answer.headers["Cache-Control"] == "no-store", path
    check_headers(visitor.post("/runs/r-run/do/cancel", {}))
    check_headers(visitor.call("PUT", "/", {}))


def test_pages_hold_no_script_and_no_style_of_their_own(visitor: Visitor) -> None:
    """The policy would keep browsers from them; so none is written."""
    for path in ("/", "/runs/r-run", "/runs/r-run/batches/0", "/runs/r-run/do/cancel"):
        text = visitor.get(path).text
        assert "<style" not in text
        assert " style=" not in text
        assert " onclick=" not in text
        assert text.count("<script") == text.count("<script src=")


def test_read_only_refuses_to_act(url: str) -> None:
    """It shows neither the question nor does it take the answer."""
    with visited(url, read_only=True) as visitor:
        page = visitor.get("/runs/r-run")
        assert page.status == 200
        assert visitor.get("/runs/r-run/do/cancel").status == 403
        posted = visitor.post(
            "/runs/r-run/do/cancel", {"csrf": page.csrf if "csrf" in page.text else ""}
        )
        assert posted.status == 403
    assert state_of(url, "r-run") is RunState.RUNNING


def test_a_form_that_is_too_large_is_refused(visitor: Visitor, url: str) -> None:
    """Nothing is kept of it."""
    answer = visitor.post("/runs/r-run/do/cancel", {"csrf": "x" * 100_000})
    assert (answer.status, "16,384 bytes" in answer.text) == (413, True)
    assert state_of(url, "r-run") is RunState.RUNNING


def test_no_password_of_the_journal_shows(postgres_url: str) -> None:
    """Pages name the database, without who opens it."""
    with visited(postgres_url) as visitor:
        text = visitor.get("/").text
    assert "postgresql://127.0.0.1:" in text
    assert "only-for-tests" not in text
    assert "postgres@" not in text


def test_lines_that_are_no_http_end_nothing(visitor: Visitor) -> None:
    """The next browser is served."""
    host, _, port = visitor.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        raw.settimeout(10)
        raw.recv(1_000)
    assert visitor.get("/").status == 200
