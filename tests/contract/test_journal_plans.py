"""No statement of a step reads a large table from end to end, however many batches there are."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from benchmarks.scale import plans_of_one_more
from benchmarks.scale_fill import publish_first
from benchmarks.scale_plans import Plan
from benchmarks.scale_steps import Driver
from sqlalchemy import Engine, text

from embatch.journal.connecting import open_engine
from embatch.journal.store import Journal

BATCHES = 3_000
MOST_PAGES = 80
"""Of 8 KiB that a statement touches, with one batch or with thousands."""


@pytest.fixture
def engine(journal_url: str) -> Iterator[Engine]:
    """The database of `journal_url`."""
    opened = open_engine(journal_url)
    yield opened
    opened.dispose()


def plans(journal_url: str, engine: Engine) -> list[Plan]:
    """What one more batch asks for beside a run that is half done."""
    with closing(Journal.open(journal_url)) as journal:
        Driver(journal, "r1").enter(BATCHES)
        publish_first(engine, "r1", below=BATCHES // 2)
        on_sqlite = engine.dialect.name == "sqlite"
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE" if on_sqlite else "VACUUM ANALYZE"))
        return plans_of_one_more(journal, engine, BATCHES)


def test_a_step_reads_no_more_with_more_batches(journal_url: str, engine: Engine) -> None:
    """On either database, by the plans that it carries out."""
    found = plans(journal_url, engine)
    assert len(found) > 20
    assert [plan for plan in found if plan.scans or plan.pages > MOST_PAGES] == []


def test_a_statement_without_an_index_would_be_seen(postgres_url: str) -> None:
    """The same look, with the indices of the steps taken away."""
    engine = open_engine(postgres_url)
    indices = (
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE i.indrelid = 'batches'::regclass AND NOT i.indisunique"
    )
    with engine.begin() as connection:
        names = list(connection.execute(text(indices)).scalars())
        for name in names:
            connection.execute(text(f'DROP INDEX "{name}"'))
    found = plans(postgres_url, engine)
    engine.dispose()
    assert names
    assert [plan for plan in found if plan.scans] != []
