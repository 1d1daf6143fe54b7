"""The first schema: journal, runs, batches, failures, events, and the allowed transitions."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_GUARDED = {"runs": "run", "batches": "batch"}


def upgrade() -> None:
    """Makes the tables, the triggers that guard states, and this journal's id."""
    _create_tables()
    for table, kind in _GUARDED.items():
        _guard_states(table, kind)
    journal = sa.table("journal", sa.column("id"), sa.column("created_at"))
    op.execute(sa.insert(journal).values(id=secrets.token_hex(4), created_at=time.time()))


def _guard_states(table: str, kind: str) -> None:
    allowed = (
        f"SELECT 1 FROM transitions WHERE kind = '{kind}' "  # noqa: S608 - both names stand above
        "AND source = OLD.state AND target = NEW.state"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {table}_state_guard BEFORE UPDATE OF state ON {table} "
            f"WHEN OLD.state <> NEW.state AND NOT EXISTS ({allowed}) "
            f"BEGIN SELECT RAISE(ABORT, 'a {kind} cannot change its state like this'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_state_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF OLD.state <> NEW.state AND NOT EXISTS ({allowed}) THEN "
        f"RAISE EXCEPTION 'a {kind} cannot change from % to %', OLD.state, NEW.state; "
        "END IF; RETURN NEW; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_state_guard BEFORE UPDATE OF state ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_state_guard()"
    )


def _create_tables() -> None:
    op.create_table(
        "journal",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("out", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("space", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("rows", _BIG, nullable=True),
        sa.Column("error_code", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_runs_state"), "runs", ["state"], unique=False)
    op.create_table(
        "transitions",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("kind", "source", "target"),
    )
    op.create_table(
        "batches",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("parent_id", _BIG, nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("tokens_estimated", _BIG, nullable=False),
        sa.Column("text_bytes", _BIG, nullable=False),
        sa.Column("row_min", _BIG, nullable=False),
        sa.Column("row_max", _BIG, nullable=False),
        sa.Column("owner_min", _BIG, nullable=True),
        sa.Column("owner_max", _BIG, nullable=True),
        sa.Column("stage", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("input_ref", sa.Text(), nullable=True),
        sa.Column("remote_name", sa.Text(), nullable=True),
        sa.Column("succeeded", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("tokens", _BIG, nullable=False),
        sa.Column("truncated", sa.Integer(), nullable=False),
        sa.Column("repeated", sa.Integer(), nullable=False),
        sa.Column("part_temp", sa.Text(), nullable=True),
        sa.Column("part", sa.Text(), nullable=True),
        sa.Column("part_sha256", sa.String(length=64), nullable=True),
        sa.Column("part_bytes", _BIG, nullable=True),
        sa.Column("part_rows", sa.Integer(), nullable=True),
        sa.Column("part_row_min", _BIG, nullable=True),
        sa.Column("part_row_max", _BIG, nullable=True),
        sa.Column("error_code", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("blocked_reason", sa.String(length=16), nullable=True),
        sa.Column("blocked_detail", sa.Text(), nullable=True),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("polls", sa.Integer(), nullable=False),
        sa.Column("absences", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("submitted_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("cleared_at", sa.Float(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "number"),
    )
    op.create_index(
        "batches_by_parts", "batches", ["run_id", "part_row_min", "part_row_max"], unique=False
    )
    op.create_index("batches_due", "batches", ["run_id", "state", "next_at"], unique=False)
    op.create_index(
        "batches_frontier", "batches", ["run_id", "kind", "state", "row_min"], unique=False
    )
    op.create_index(
        "batches_leased",
        "batches",
        ["lease_expires_at"],
        unique=False,
        sqlite_where=sa.text("lease_token IS NOT NULL"),
        postgresql_where=sa.text("lease_token IS NOT NULL"),
    )
    op.create_table(
        "events",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("batch_id", _BIG, nullable=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=True),
        sa.Column("target", sa.String(length=32), nullable=True),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("events_by_run", "events", ["run_id", "id"], unique=False)
    op.create_table(
        "failures",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("row", _BIG, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("batch_id", _BIG, nullable=True),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("kept_in", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "row"),
    )
