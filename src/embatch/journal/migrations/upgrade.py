"""Brings a journal to the newest schema, once, under a lock."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, delete, insert, text

from embatch.journal.connecting import shown_url
from embatch.journal.revisions import current_schema
from embatch.journal.schema import transitions_table
from embatch.types.state import BATCH_TRANSITIONS, RUN_TRANSITIONS

_LOCK_KEY = 0x656D6261
"""PostgreSQL advisory lock that one migrating process holds."""


def upgrade(engine: Engine) -> None:
    """Runs the missing migrations in one transaction; other processes wait for it."""
    with engine.connect() as plain:
        connection = plain.execution_options(embatch_write=True)
        with connection.begin():
            _lock(connection)
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent))
            config.attributes["connection"] = connection
            config.attributes["schema"] = current_schema(connection, shown_url(engine.url))
            command.upgrade(config, "head")
            _write_transitions(connection)


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # a large journal takes its time
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def _write_transitions(connection: Connection) -> None:
    """The tables of types.state, as rows that the database's own triggers obey."""
    pairs = {("batch", s.value, t.value) for (s, _), t in BATCH_TRANSITIONS.items()}
    pairs |= {("run", s.value, t.value) for (s, _), t in RUN_TRANSITIONS.items()}
    connection.execute(delete(transitions_table))
    connection.execute(
        insert(transitions_table),
        [{"kind": kind, "source": s, "target": t} for kind, s, t in sorted(pairs)],
    )
