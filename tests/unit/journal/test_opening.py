"""Opening a journal: what is refused, in which words, and what of a URL they show."""

import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text

from embatch.errors import ConfigError, JournalError
from embatch.journal.connecting import open_engine, parse_url, shown_url
from embatch.journal.purchases import Purchase
from embatch.journal.records import Failure
from embatch.journal.store import Journal
from postgres import PostgresServer

SECRET = "only-for-tests"
OPENER = """
import sys
from embatch.journal.store import Journal

journal = Journal.open(sys.argv[1])
print(journal.id)
journal.close()
"""


def refused(url: str) -> JournalError:
    with pytest.raises(JournalError) as caught:
        Journal.open(url)
    assert SECRET not in str(caught.value)
    assert PostgresServer.password not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_opens_the_same_journal(
    scheme: str, postgres_url: str
) -> None:
    """psycopg 3 is meant by all of them."""
    first = Journal.open(postgres_url)
    journal = Journal.open(postgres_url.replace("postgresql", scheme, 1))
    assert journal.id == first.id
    journal.close()
    first.close()


@pytest.mark.parametrize(
    ("change", "words", "transient"),
    [
        (("only-for-tests", "wrong"), "password authentication failed", False),
        (("postgres:only", "stranger:only"), "password authentication failed", False),
        (("/test_", "/no_such_"), "does not exist", False),
        (("127.0.0.1", "nowhere.invalid"), "nowhere.invalid", True),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(
    change: tuple[str, str], words: str, transient: bool, postgres_url: str
) -> None:
    """Wrong password, user, database or host; and whether waiting may help."""
    error = refused(postgres_url.replace(*change, 1))
    assert words in str(error)
    assert "--journal" in str(error)
    assert error.transient is transient


def test_a_server_that_is_not_there_may_come_back(postgres_url: str) -> None:
    """Nobody listens: the error says so, and that it may pass."""
    error = refused(postgres_url.replace("127.0.0.1", "127.0.0.2"))
    assert "Connection refused" in str(error)
    assert error.transient


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:only-for-tests@host:port/db",
        "mysql://me:only-for-tests@host/db",
        "no url at all",
    ],
)
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    """A piece of a password that is not quoted rightly would stand in the parser's words."""
    with pytest.raises(ConfigError, match="not usable") as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_secret_of_a_query_is_shown() -> None:
    """A password may stand behind the question mark too."""
    shown = shown_url(parse_url("postgresql://me@/db?host=/run/pg&password=x1&sslpassword=x2"))
    assert shown == "postgresql+psycopg://me@/db?host=%2Frun%2Fpg"


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'embatch\[postgres\]'"):
        open_engine("postgresql://me@host/db")


def test_tables_of_another_program_are_left_alone(empty_postgres_url: str) -> None:
    """A database with a table `jobs` of other columns is refused as it is; a schema is a home."""
    engine = create_engine(parse_url(empty_postgres_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (what text)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('a1b2c3')"))
    error = refused(empty_postgres_url)
    assert "jobs" in str(error)
    assert "schema" in str(error)
    assert not error.transient
    home = empty_postgres_url + "?options=-csearch_path%3Dmine,public"
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA mine"))
    journal = Journal.open(home)
    again = Journal.open(home)
    assert again.id == journal.id
    journal.close()
    again.close()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM public.jobs")).scalar() == 0
        assert connection.execute(text("SELECT * FROM public.alembic_version")).scalar() == "a1b2c3"
    engine.dispose()


def test_a_schema_that_is_not_there_is_named(empty_postgres_url: str) -> None:
    """The error says how to make it."""
    error = refused(empty_postgres_url + "?options=-csearch_path%3Dnowhere")
    assert "nowhere" in str(error)
    assert "CREATE SCHEMA" in str(error)


def test_a_user_without_rights_is_told_which(
    empty_postgres_url: str, postgres_server: PostgresServer
) -> None:
    """PostgreSQL's own words name the schema."""
    with postgres_server.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS visitor")
        connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'only-for-tests'")
    url = parse_url(empty_postgres_url).set(username="visitor", password=SECRET)
    error = refused(url.render_as_string(hide_password=False))
    assert "permission denied for schema public" in str(error)


def test_six_processes_open_an_empty_database_at_once(empty_postgres_url: str) -> None:
    """One of them makes the journal, the others find it."""
    command = [sys.executable, "-c", OPENER, empty_postgres_url]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, [err for _, err in ended]
    assert len({out for out, _ in ended}) == 1


@pytest.mark.parametrize(
    "strange", ["a\0b", "\0", "\x1a0000", "\ud800x", "é\udcff", "\x1a", "%_\\"]
)
def test_text_of_any_kind_is_kept(strange: str, journal_url: str) -> None:
    """NUL, lone surrogates and what stands for them come out as they went in, and are found."""
    journal = Journal.open(journal_url)
    journal.create_run(
        run_id="r1",
        name=strange,
        out=strange,
        config={"max_cost_usd": None, "x": strange},
        space={},
        tags={strange: strange},
        now=1.5,
    )
    run = journal.get_run(strange)
    assert (run.name, run.out, run.config["x"], run.tags) == (strange, strange, strange, run.tags)
    assert run.tags == {strange: strange}
    token = journal.leases.claim_planning("r1", owner=strange, lease_s=60)
    assert token is not None
    failure = Failure(row=2**40, key=strange, code=strange, message=strange, attempts=1)
    journal.batches.add_planned("r1", token, batches=[], failures=[failure], plan={}, now=1.5)
    assert list(journal.failures("r1")) == [failure]
    bought = Purchase(
        ref=strange * 100, run_id="r1", kind="probe", rows=1, tokens_bound=2**40,
        tokens_estimated=1, usd_bound=0.1,
    )  # fmt: skip
    journal.ledger.reserve(bought, now=1_763_900_000.123456)
    line = journal.ledger.find(strange * 100)
    assert line is not None
    assert (line.tokens_bound, line.at) == (2**40, 1_763_900_000.123456)
    journal.close()
