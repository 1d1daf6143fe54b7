"""The dashboard's pages over a real socket: HTML and JSON twins, on either database."""

import json
from collections.abc import Iterator

import pytest

from dashboards import HTML, NOTIFY, Visitor, enter, fill, visited
from embatch.journal.store import Journal

PATHS = (
    "/",
    "/?state=running&tag=team%3Da%3Cb&q=live",
    "/runs/r-run",
    "/runs/r-person",
    "/runs/r-done",
    "/runs/r-failed",
    "/runs/r-budget",
    "/runs/r-workers",
    "/runs/r-run/batches/0",
    "/runs/r-run/batches/3",
    "/runs/r-run/batches/5",
    "/runs/r-person/batches/0",
    "/runs/r-done/batches/0",
    "/workers",
    "/provider",
)
ASKING = (
    "/runs/r-run/do/cancel",
    "/runs/r-budget/do/budget",
    "/runs/r-budget/do/resume",
    "/runs/r-done/do/retry",
    "/runs/r-person/batches/0/do/adopt",
    "/runs/r-person/batches/0/do/absent",
)


@pytest.fixture
def visitor(journal_url: str) -> Iterator[Visitor]:
    journal = Journal.open(journal_url)
    fill(journal)
    journal.close()
    with visited(journal_url) as opened:
        yield opened


def test_every_page_is_there_and_hides_what_it_must(visitor: Visitor) -> None:
    """Names, keys, tags and errors are escaped; no target of a notification shows."""
    for path in (*PATHS, *ASKING):
        answer = visitor.get(path)
        assert answer.status == 200, (path, answer.text)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert HTML not in answer.text, path
        assert "<script>alert" not in answer.text, path
        assert NOTIFY not in answer.text, path
        assert "secret-part" not in answer.text, path
    assert "live &lt;script&gt;" in visitor.get("/").text
    assert "key 0 &lt;script&gt;" in visitor.get("/runs/r-done").text


def test_every_page_has_a_json_twin(visitor: Visitor) -> None:
    """By its name, and by the header: the same values."""
    twins = ("/runs", "/runs/r-run", "/runs/r-run/batches/0", "/workers", "/provider")
    for path in twins:
        named, asked = visitor.get(f"{path}.json"), visitor.get(path, accept="application/json")
        for answer in (named, asked):
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/json"
            assert "secret-part" not in answer.text
        assert named.json.keys() == asked.json.keys()
    page = visitor.get("/runs/r-run.json").json
    assert page["run"]["title"] == f"live {HTML}"
    assert page["batches"]["published"] == 3
    assert page["grid"]["letters"] == "wwwspp"
    first = visitor.get("/").headers
    assert "Set-Cookie" not in visitor.get("/runs.json").headers
    assert first["Vary"] == "Accept, Cookie"


def test_what_is_not_there_is_said_in_both_forms(visitor: Visitor) -> None:
    """Wrong addresses and wrong queries: a status, a sentence, no trace."""
    wrong = {
        "/nowhere": 404,
        "/runs/nope": 404,
        "/runs/in doubt".replace(" ", "%20"): 404,
        "/runs/r-run/batches/99": 404,
        "/runs/r-run/batches/99999999999999999999": 404,
        "/?page=999999999999999999": 400,
        "/runs/r-run/do/explode": 404,
        "/?state=asleep": 400,
        "/?tag=nothing": 400,
        "/?page=0": 400,
        "/?page=x": 400,
        "/?q=" + "x" * 300: 400,
        "/runs/r-run?before=-1": 400,
        "/provider?provider=nobody": 400,
        "/runs/r-run/batches/0/do/adopt": 409,
        "/runs/r-done/do/cancel": 409,
        "/runs/r-run/do/budget": 409,
    }
    for path, status in wrong.items():
        html, twin = visitor.get(path), visitor.get(path, accept="application/json")
        assert (html.status, twin.status) == (status, status), path
        assert "Traceback" not in html.text + twin.text
        assert twin.json["error"], path
    assert visitor.get("/?page=999999999999999").status == 200
    assert visitor.call("DELETE", "/runs/r-run", {}).status == 405
    assert visitor.call("POST", "/", {}, b"").status == 405


def test_pages_of_a_large_run_stay_light(visitor: Visitor, journal_url: str) -> None:
    """Ten thousand batches and more: under 300 kB, as HTML and as JSON."""
    journal = Journal.open(journal_url)
    enter(journal, "r-large", batches=10_001)
    journal.close()
    for path in ("/runs/r-large", "/runs/r-large.json"):
        answer = visitor.get(path)
        assert answer.status == 200
        assert len(answer.body) < 300_000, path
    grid = visitor.get("/runs/r-large.json").json["grid"]
    assert (grid["total"], grid["per_cell"], len(grid["letters"])) == (10_001, 2, 5_001)


def test_a_journal_that_is_away_is_said_and_comes_back(visitor: Visitor, journal_url: str) -> None:
    """Pages of a table that cannot be read answer 503, and 200 once it can."""
    journal = Journal.open(journal_url)
    with journal._database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger RENAME TO ledger_away")
    broken = visitor.get("/runs/r-run", accept="application/json")
    with journal._database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger_away RENAME TO ledger")
    journal.close()
    assert broken.status == 503
    assert "journal" in broken.json["error"]
    assert visitor.get("/runs/r-run").status == 200


def test_no_page_of_an_empty_journal_is_empty(tmp_path: object) -> None:
    """It says how to begin."""
    with visited(f"sqlite:///{tmp_path}/empty.db") as visitor:
        assert "embatch run" in visitor.get("/").text
        assert json.loads(visitor.get("/runs.json").text)["total"] == 0
        assert visitor.get("/workers").status == 200
