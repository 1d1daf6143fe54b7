"""Which schema a database holds: ours, an older or newer one of ours, or somebody else's."""

import re
from typing import Final

from sqlalchemy import Connection, inspect, text

from embatch.errors import JournalError
from embatch.journal.schema import metadata

SCHEMA_REVISION: Final = "0003"
"""The newest Alembic revision, the one that this code speaks."""
VERSION_TABLE: Final = "alembic_version"
_OURS: Final = re.compile(r"\d{4}")


def current_schema(connection: Connection, shown: str) -> str | None:
    """The PostgreSQL schema that holds the journal, the first of the search path; None on SQLite.

    `shown` names the database in the error.
    """
    if connection.dialect.name != "postgresql":
        return None
    found: str | None = connection.execute(text("SELECT current_schema()")).scalar()
    if found is None:
        path = connection.execute(text("SHOW search_path")).scalar()
        raise JournalError(
            f"the journal {shown} has no schema to live in: none of the search path {path!r} "
            "exists; make one with CREATE SCHEMA, or name another in the URL "
            "(?options=-csearch_path%3DNAME)"
        )
    return found


def find_revision(connection: Connection, shown: str) -> str | None:
    """The schema's revision, None where there is no journal yet.

    Raises JournalError where tables of another program are in the way.
    """
    schema = current_schema(connection, shown)
    there = set(inspect(connection).get_table_names(schema=schema))
    ours = {name for name in metadata.tables if name in there}
    revisions: list[str] = []
    if VERSION_TABLE in there:
        revisions = [str(v) for v in connection.execute(text(_READ_VERSIONS)).scalars()]
    if not ours and not revisions:
        return None
    if {"journal", "transitions"} <= ours and len(revisions) == 1 and _OURS.fullmatch(revisions[0]):
        return revisions[0]
    taken = sorted(ours) or [VERSION_TABLE]
    raise JournalError(
        f"the database {shown} holds tables of another program that have the journal's names "
        f"({', '.join(taken)}): give the journal a database of its own, or on PostgreSQL a schema "
        "of its own (CREATE SCHEMA NAME; ?options=-csearch_path%3DNAME in the URL)"
    )


def refuse_newer(found: str | None) -> None:
    """Raises JournalError for a schema that a newer embatch has made."""
    if found is not None and found > SCHEMA_REVISION:
        raise JournalError(
            f"the journal has schema {found}, this embatch knows {SCHEMA_REVISION}: update embatch"
        )


_READ_VERSIONS: Final = "SELECT version_num FROM alembic_version"
