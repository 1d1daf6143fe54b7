"""What many machines and those who watch them need: workers, notifications, events by time."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_MARKED = (
    "kind IN ('stuck', 'low_success_rate', 'resumed', 'retried', 'upload_refused', "
    "'submit_refused', 'submit_deferred', 'held_absent', 'job_failed', 'job_expired', "
    "'input_lost', 'misaligned', 'part_lost')"
)
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


_FREE_TEXTS = {
    "runs": ("error_code",),
    "batches": ("error_code", "remote_state", "bought_why"),
    "failures": ("code",),
    "events": ("kind",),
    "jobs": ("label",),
    "ledger": ("ref", "again_why"),
}
"""Columns whose lengths others decide. SQLite keeps strings of any length anyway."""


_UNDER_WAY = (
    "state IN ('uploading', 'uploaded', 'submitting', 'submitted', 'ready', 'collected', 'failed', "
    "'expired', 'cancelled', 'quarantined')"
)
_LEASED = "lease_token IS NOT NULL"
_PARTIAL: tuple[tuple[str, str, Sequence[str | sa.TextClause], str], ...] = (
    ("batches_leased", "batches", ["run_id"], _LEASED),
    ("batches_by_lease", "batches", ["lease_token"], _LEASED),
    ("batches_under_way", "batches", ["run_id", "next_at"], _UNDER_WAY),
    ("batches_blocked", "batches", ["run_id", "blocked_reason"], "blocked_reason IS NOT NULL"),
    (
        "batches_to_copy",
        "batches",
        ["run_id", "owner_max", "number"],
        "state = 'planned' AND kind = 'copies'",
    ),
    (
        "batches_by_audit",
        "batches",
        ["run_id", sa.text("coalesce(audited, 0)")],
        "state = 'published' AND kind = 'embed'",
    ),
    ("runs_by_lease", "runs", ["lease_token"], _LEASED),
)
_BUSY = ("batches", "jobs", "ledger", "quotas", "runs", "workers")
"""Tables whose rows change many times each."""


def upgrade() -> None:
    """Adds tables and indexes; what stands stays."""
    if op.get_bind().dialect.name == "postgresql":
        for table, columns in _FREE_TEXTS.items():
            for column in columns:
                op.alter_column(table, column, type_=sa.Text())
    op.create_table(
        "workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("execution", sa.String(16), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("stopped_at", sa.Float()),
        sa.Column("steps", _BIG, nullable=False),
        sa.Column("doing", sa.JSON(), nullable=False),
        sa.Column("troubles", sa.JSON(), nullable=False),
    )
    op.create_index("workers_by_sight", "workers", ["seen_at"])
    op.create_table(
        "notifications",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "run_id", sa.String(32), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("claim_token", sa.String(32)),
        sa.Column("claimed_until", sa.Float()),
        sa.Column("delivered_at", sa.Float()),
        sa.Column("given_up_at", sa.Float()),
        sa.Column("error", sa.Text()),
    )
    op.create_index("notifications_due", "notifications", ["delivered_at", "next_at"])
    op.create_index("notifications_by_run", "notifications", ["run_id", "at"])
    _index_what_moves()
    _sum_spending()
    _never_give_an_event_id_twice()
    op.create_index("events_by_batch", "events", ["batch_id", "id"])
    op.create_index(
        "events_marked",
        "events",
        ["kind", "run_id", "at"],
        sqlite_where=sa.text(_MARKED),
        postgresql_where=sa.text(_MARKED),
    )


def _never_give_an_event_id_twice() -> None:
    """SQLite gives the ids of deleted rows again where the table does not say otherwise."""
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table(
            "events", recreate="always", table_kwargs={"sqlite_autoincrement": True}
        ):
            pass


def _index_what_moves() -> None:
    """Indexes of the few batches that a step looks for, and room to keep them clean."""
    op.drop_index("batches_leased", "batches")
    for name, table, columns, where in _PARTIAL:
        condition = sa.text(where)
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
    if op.get_bind().dialect.name == "postgresql":
        for table in _BUSY:
            op.execute(
                f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, "
                "autovacuum_analyze_scale_factor = 0.02)"
            )


_SPENT = "CASE WHEN {0}state = 'settled' THEN coalesce({0}usd, 0.0) ELSE 0.0 END"
_HELD = (
    "CASE WHEN {0}state = 'reserved' THEN coalesce({0}usd_bound, 0.0) "
    "WHEN {0}state = 'settled' AND {0}estimated AND {0}usd_bound > {0}usd "
    "THEN {0}usd_bound - {0}usd ELSE 0.0 END"
)
_ENTER = (
    f"INSERT INTO spending (run_id, spent, held) VALUES (NEW.run_id, {_SPENT}, {_HELD}) "  # noqa: S608 - constants
    "ON CONFLICT (run_id) DO UPDATE SET spent = spending.spent + excluded.spent, "
    "held = spending.held + excluded.held;"
).format("NEW.")
_CHANGE = (
    f"UPDATE spending SET spent = spent + ({_SPENT.format('NEW.')}) "  # noqa: S608 - constants
    f"- ({_SPENT.format('OLD.')}), "
    f"held = held + ({_HELD.format('NEW.')}) - ({_HELD.format('OLD.')}) WHERE run_id = NEW.run_id;"
)
_CHANGED = "UPDATE OF state, usd, usd_bound, estimated ON ledger"


def _sum_spending() -> None:
    """Keeps the sums over each run's ledger, so that no reservation adds up all lines."""
    op.create_table(
        "spending",
        sa.Column(
            "run_id",
            sa.String(32),
            sa.ForeignKey("runs.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("spent", sa.Float(), nullable=False),
        sa.Column("held", sa.Float(), nullable=False),
    )
    op.execute(
        "INSERT INTO spending (run_id, spent, held) "  # noqa: S608 - constants
        f"SELECT run_id, sum({_SPENT.format('')}), sum({_HELD.format('')}) "
        "FROM ledger GROUP BY run_id"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER ledger_entered AFTER INSERT ON ledger BEGIN {_ENTER} END")
        op.execute(f"CREATE TRIGGER ledger_changed AFTER {_CHANGED} BEGIN {_CHANGE} END")
        return
    for event, what, change in (
        ("entered", "INSERT ON ledger", _ENTER),
        ("changed", _CHANGED, _CHANGE),
    ):
        op.execute(
            f"CREATE FUNCTION ledger_{event}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {change} RETURN NULL; END $$"
        )
        op.execute(
            f"CREATE TRIGGER ledger_{event} AFTER {what} "
            f"FOR EACH ROW EXECUTE FUNCTION ledger_{event}()"
        )
