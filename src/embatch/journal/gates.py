"""What holds a run's new batches back, and which published ones must be audited again."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    exists,
    false,
    func,
    literal_column,
    select,
    true,
)

from embatch.journal.schema import batches_table, runs_table
from embatch.types.state import FINAL_BATCH_STATES, BatchState

DIRECT: Final = "direct:"
"""What the labels of batches begin with that were embedded at once."""
_UNFINISHED: Final = tuple(state.value for state in BatchState if state not in FINAL_BATCH_STATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A run's gate, as its plan, its config and its audits have it."""

    run_id: str
    probe_row: int | None
    """Last row of the probe while nothing else may begin; None: everything may."""
    audit_rows: int | None
    """Published batches of which fewer rows were audited must be audited again; None: none."""

    @classmethod
    def of(cls, connection: Connection, run_id: str) -> "Gate":
        """The gate as it stands now."""
        table = runs_table.c
        row = connection.execute(
            select(table.plan, table.config, table.audit_rows).where(table.id == run_id)
        ).one_or_none()
        if row is None:
            return cls(run_id=run_id, probe_row=None, audit_rows=None)
        plan, config = row.plan or {}, row.config or {}
        return cls(
            run_id=run_id,
            probe_row=_probe_row(connection, run_id, plan, config),
            audit_rows=None if config.get("audit") == "off" else row.audit_rows,
        )

    def may_begin(self) -> ColumnElement[bool]:
        """Of planned batches for the provider: those that the probe does not hold back."""
        return true() if self.probe_row is None else batches_table.c.row_min <= self.probe_row

    def held_back(self) -> ColumnElement[bool]:
        """Of all batches: the new ones for the provider that wait for the probe."""
        table = batches_table.c
        planned = and_(table.state == BatchState.PLANNED.value, table.kind == "embed")
        return false() if self.probe_row is None else and_(planned, ~self.may_begin())

    def audited_too_little(self) -> ColumnElement[bool]:
        """Of all batches: the published ones that a mismatch elsewhere has made doubtful.

        What was embedded at once came from the API that audits ask.
        """
        table = batches_table.c
        audited = func.coalesce(table.audited, literal_column("0"))  # none while audits were off
        return and_(
            table.run_id == self.run_id,
            table.state == literal_column(f"'{BatchState.PUBLISHED.value}'"),
            table.kind == literal_column("'embed'"),
            func.coalesce(table.label, "").not_like(f"{DIRECT}%"),
            audited < (self.audit_rows or 0),
            audited < table.part_rows,
        )


def _probe_row(connection: Connection, run_id: str, plan: Any, config: Any) -> int | None:
    """Last row of a probe that is not decided; its rows may stand in child batches by now."""
    last = plan.get("probe_row")
    if last is None or not config.get("probe", False):
        return None
    table = batches_table.c
    of_probe = [table.run_id == run_id, table.kind == "embed", table.row_min <= last]
    published = exists().where(*of_probe, table.state == BatchState.PUBLISHED.value)
    undecided = exists().where(*of_probe, table.state.in_(_UNFINISHED))
    waits = connection.execute(select(and_(undecided, ~published))).scalar()
    return int(last) if waits else None
