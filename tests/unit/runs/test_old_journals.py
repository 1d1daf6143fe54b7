"""Runs whose journal an older embatch wrote, at the first schema."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from replaying import Replay, Replays, finish, work_until
from sqlalchemy import create_engine

from embatch.journal import migrations
from embatch.journal.store import Journal
from embatch.testing.provider import FakeProvider
from embatch.types.state import BatchState, RunState

TABLES = ("journal", "runs", "batches", "failures", "events")
"""Of the first schema, beside the transitions, which every start writes anew."""
NEW = {"jobs", "ledger", "quotas", "calibrations", "audits"}


def first_schema(path: Path) -> None:
    """Makes an empty journal as the first schema has it."""
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(str(migrations.__file__)).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()


def age(run: Replay, folder: Path) -> None:
    """Puts the run's journal back to the first schema, and opens it again."""
    path, old = folder / "journal.db", folder / "old.db"
    run.journal.close()
    first_schema(old)
    with sqlite3.connect(old) as raw:
        raw.execute("ATTACH DATABASE ? AS today", (str(path),))
        for table in TABLES:
            columns = ", ".join(
                f'"{row[1]}"' for row in raw.execute(f"PRAGMA main.table_info({table})")
            )
            raw.execute(f"DELETE FROM main.{table}")
            raw.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM today.{table}")
    raw.close()
    for file in folder.glob("journal.db*"):
        file.unlink()
    old.rename(path)
    assert tables(path).isdisjoint(NEW)
    run.journal = Journal.open(f"sqlite:///{path}")
    run.context = replace(run.context, journal=run.journal)
    assert tables(path) >= NEW
    with sqlite3.connect(path) as raw:
        ids = raw.execute("SELECT max(id) FROM events").fetchone()
        # No id of an event is given twice, those of before included.
        told = raw.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    raw.close()
    assert told == ids


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as raw:
        found = {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}
    raw.close()
    return found


@pytest.mark.parametrize(
    "reached", [BatchState.UPLOADED, BatchState.SUBMITTED, BatchState.READY, BatchState.PUBLISHED]
)
def test_a_run_of_the_first_schema_goes_on(
    replay: Replays, tmp_path: Path, reached: BatchState
) -> None:
    """Wherever its batches stand: nothing is bought twice, and every row gets its own vector."""
    run = replay(FakeProvider(), audit="off")
    work_until(run, reached)
    states, journal_id = run.states(), run.journal.id
    assert len(states) > 1
    age(run, tmp_path / "0")
    assert (run.states(), run.journal.id) == (states, journal_id)
    run.work()
    finish(run)
    assert run.context.run().state is RunState.COMPLETED
    run.assert_right()
    assert sorted(run.provider.rows_bought) == sorted(run.texts)
    assert run.journal.ledger.again(run.context.run_id) == {}
