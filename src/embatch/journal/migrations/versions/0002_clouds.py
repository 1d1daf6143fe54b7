"""What the clouds need: remote jobs by label, the ledger, quotas, calibrations, audits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds columns and tables; what stands stays."""
    for table, column in (
        ("runs", sa.Column("resume_at", sa.Float())),
        ("runs", sa.Column("audit_rows", sa.Integer())),
        ("runs", sa.Column("watched_at", sa.Float())),
        ("runs", sa.Column("twins", sa.Integer(), nullable=False, server_default="0")),
        ("batches", sa.Column("tokens_bound", _BIG, nullable=False, server_default="0")),
        ("batches", sa.Column("item_bound", _BIG, nullable=False, server_default="0")),
        ("batches", sa.Column("bought", sa.Integer(), nullable=False, server_default="0")),
        ("batches", sa.Column("bought_why", sa.String(32))),
        ("batches", sa.Column("moved_at", sa.Float())),
        ("batches", sa.Column("cancel_asked_at", sa.Float())),
        ("batches", sa.Column("remote_state", sa.String(64))),
        ("batches", sa.Column("results_until", sa.Float())),
        ("batches", sa.Column("audited", sa.Integer())),
        ("batches", sa.Column("audit_least", sa.Float())),
        ("batches", sa.Column("part_good", sa.LargeBinary())),
    ):
        op.add_column(table, column)
    _create_jobs()
    _create_ledger()
    _create_beliefs()


def _run() -> sa.Column[str]:
    return sa.Column(
        "run_id", sa.String(32), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("label", sa.String(128), primary_key=True),
        _run(),
        sa.Column("batch_id", _BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("tokens", _BIG, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("occupies", sa.Boolean(), nullable=False),
        sa.Column("remote_name", sa.Text()),
        sa.Column("intended_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float()),
    )
    op.create_index("jobs_occupying", "jobs", ["scope", "occupies"])
    op.create_index("jobs_by_run", "jobs", ["run_id", "state"])
    op.create_index("jobs_by_batch", "jobs", ["batch_id"])


def _create_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("ref", sa.String(160), primary_key=True),
        _run(),
        sa.Column("batch_id", _BIG),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("rows_failed", sa.Integer(), nullable=False),
        sa.Column("rows_again", sa.Integer(), nullable=False),
        sa.Column("again_why", sa.String(32)),
        sa.Column("tokens_bound", _BIG, nullable=False),
        sa.Column("tokens_estimated", _BIG, nullable=False),
        sa.Column("tokens", _BIG),
        sa.Column("usd_bound", sa.Float()),
        sa.Column("usd", sa.Float()),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("settled_at", sa.Float()),
    )
    op.create_index("ledger_by_run", "ledger", ["run_id", "state"])
    op.create_index("ledger_by_batch", "ledger", ["batch_id"])


def _create_beliefs() -> None:
    op.create_table(
        "quotas",
        sa.Column("scope", sa.Text(), primary_key=True),
        sa.Column("belief", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "calibrations",
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("text_bytes", _BIG, nullable=False),
        sa.Column("tokens", _BIG, nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "audits",
        sa.Column(
            "run_id", sa.String(32), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("batch_id", _BIG, primary_key=True),
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("cosine", sa.Float(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
    )
