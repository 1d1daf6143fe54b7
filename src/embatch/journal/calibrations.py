"""Tokens a byte of text, by model, as the services have counted them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, case, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.database import Database
from embatch.journal.schema import calibrations_table

REMEMBERED_BYTES: Final = 64 << 20
"""Past this, what was counted before weighs half: texts change from run to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a service has counted of a model's texts."""

    text_bytes: int
    """UTF-8 bytes of the texts."""
    tokens: int
    """Tokens of them, special ones included."""


class CalibrationTable:
    """One line a model, shared by all runs of a journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, model: str) -> Calibration | None:
        """What was counted so far; None before the first count."""
        table = calibrations_table.c
        with self._database.read() as connection:
            row = connection.execute(
                select(table.text_bytes, table.tokens).where(table.model == model)
            ).one_or_none()
        return None if row is None else Calibration(text_bytes=int(row[0]), tokens=int(row[1]))

    def counting(
        self, model: str, *, text_bytes: int, tokens: int, now: float
    ) -> Callable[[Connection], None]:
        """Adds a count with a change of state (`also=`), so that no text is counted twice."""
        return lambda connection: _count(connection, model, text_bytes, tokens, now)


def _count(connection: Connection, model: str, text_bytes: int, tokens: int, now: float) -> None:
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    table = calibrations_table.c
    full = table.text_bytes > REMEMBERED_BYTES
    entry = make(calibrations_table).values(
        model=model, text_bytes=text_bytes, tokens=tokens, updated_at=now
    )
    connection.execute(
        entry.on_conflict_do_update(
            index_elements=["model"],
            set_={
                "text_bytes": case((full, table.text_bytes // 2), else_=table.text_bytes)
                + text_bytes,
                "tokens": case((full, table.tokens // 2), else_=table.tokens) + tokens,
                "updated_at": now,
            },
        )
    )
