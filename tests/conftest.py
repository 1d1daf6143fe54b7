"""What all tests share: databases, and how long hypothesis may think."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from postgres import PostgresServer

# A busy machine is no defect: no test is held to a time.
settings.register_profile("embatch", deadline=None)
settings.load_profile("embatch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--pictures FOLDER`: the browser tests leave the pictures of the docs there."""
    parser.addoption("--pictures", metavar="FOLDER", default=None)


def pytest_collection_finish() -> None:
    """What is there before the tests is not looked at again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _found_where_it_was_left() -> Iterator[None]:
    """What tests leave open fails them when the collector meets it: here, not in a later file."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server that the tests of this process share; not to be restarted or crashed."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with an empty journal."""
    url = postgres_server.create_journal()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with nothing in it."""
    url = postgres_server.create_empty()
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'journal.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
