"""Tables of the journal. Rows per batch, not per item; failed rows alone are rows."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
    text,
)

from embatch.journal.texts import AnyText
from embatch.types.state import FINAL_BATCH_STATES, BatchState

metadata = MetaData()

MARKED_EVENTS = (
    "kind IN ('stuck', 'low_success_rate', 'resumed', 'retried', 'upload_refused', "
    "'submit_refused', 'submit_deferred', 'held_absent', 'job_failed', 'job_expired', "
    "'input_lost', 'misaligned', 'part_lost')"
)
"""Kinds of events that are looked for among millions: an index holds these alone."""

UNDER_WAY_STATES = tuple(
    state.value
    for state in BatchState
    if state not in FINAL_BATCH_STATES and state is not BatchState.PLANNED
)
"""States of batches that are begun and not at their end: few, however large the run."""
_UNDER_WAY = text(f"state IN ({', '.join(repr(state) for state in UNDER_WAY_STATES)})")
_LEASED = text("lease_token IS NOT NULL")
_BLOCKED = text("blocked_reason IS NOT NULL")
_NEW_COPIES = text("state = 'planned' AND kind = 'copies'")
_PUBLISHED = text("state = 'published' AND kind = 'embed'")

_big = BigInteger().with_variant(Integer, "sqlite")
"""64 bits everywhere; SQLite numbers rows by itself only in a column called INTEGER."""

journal_table = Table(
    "journal",
    metadata,
    Column("id", AnyText(), primary_key=True),
    Column("created_at", Float, nullable=False),
)

transitions_table = Table(
    "transitions",
    metadata,
    Column("kind", AnyText(), primary_key=True),
    Column("source", AnyText(), primary_key=True),
    Column("target", AnyText(), primary_key=True),
)

runs_table = Table(
    "runs",
    metadata,
    Column("id", AnyText(), primary_key=True),
    Column("name", AnyText()),
    Column("state", AnyText(), nullable=False, index=True),
    Column("out", AnyText(), nullable=False),
    Column("config", JSON, nullable=False),
    Column("space", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("plan", JSON),
    Column("rows", _big),
    Column("error_code", AnyText()),
    Column("error", AnyText()),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("resume_at", Float),
    Column("audit_rows", Integer),
    Column("watched_at", Float),
    Column("twins", Integer, nullable=False, server_default="0"),
    Column("lease_owner", AnyText()),
    Column("lease_token", AnyText()),
    Column("lease_expires_at", Float),
    Index("runs_by_lease", "lease_token", sqlite_where=_LEASED, postgresql_where=_LEASED),
)

batches_table = Table(
    "batches",
    metadata,
    Column("id", _big, primary_key=True, autoincrement=True),
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", AnyText(), nullable=False),
    Column("parent_id", _big),
    Column("state", AnyText(), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("items", Integer, nullable=False),
    Column("tokens_estimated", _big, nullable=False),
    Column("tokens_bound", _big, nullable=False, server_default="0"),
    Column("item_bound", _big, nullable=False, server_default="0"),
    Column("bought", Integer, nullable=False, server_default="0"),
    Column("bought_why", AnyText()),
    Column("text_bytes", _big, nullable=False),
    Column("row_min", _big, nullable=False),
    Column("row_max", _big, nullable=False),
    Column("owner_min", _big),
    Column("owner_max", _big),
    Column("stage", AnyText()),
    Column("label", AnyText()),
    Column("input_ref", AnyText()),
    Column("remote_name", AnyText()),
    Column("succeeded", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("tokens", _big, nullable=False),
    Column("truncated", Integer, nullable=False),
    Column("repeated", Integer, nullable=False),
    Column("part_temp", AnyText()),
    Column("part", AnyText()),
    Column("part_sha256", AnyText()),
    Column("part_bytes", _big),
    Column("part_rows", Integer),
    Column("part_row_min", _big),
    Column("part_row_max", _big),
    Column("error_code", AnyText()),
    Column("error", AnyText()),
    Column("blocked_reason", AnyText()),
    Column("blocked_detail", AnyText()),
    Column("next_at", Float, nullable=False),
    Column("polls", Integer, nullable=False),
    Column("absences", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("submitted_at", Float),
    Column("finished_at", Float),
    Column("cleared_at", Float),
    Column("moved_at", Float),
    Column("cancel_asked_at", Float),
    Column("remote_state", AnyText()),
    Column("results_until", Float),
    Column("audited", Integer),
    Column("audit_least", Float),
    Column("part_good", LargeBinary),
    Column("lease_owner", AnyText()),
    Column("lease_token", AnyText()),
    Column("lease_expires_at", Float),
    UniqueConstraint("run_id", "number"),
    Index("batches_due", "run_id", "state", "next_at"),
    Index("batches_frontier", "run_id", "kind", "state", "row_min"),
    Index("batches_by_parts", "run_id", "part_row_min", "part_row_max"),
    Index("batches_leased", "run_id", sqlite_where=_LEASED, postgresql_where=_LEASED),
    Index("batches_by_lease", "lease_token", sqlite_where=_LEASED, postgresql_where=_LEASED),
    Index(
        "batches_under_way",
        *("run_id", "next_at"),
        sqlite_where=_UNDER_WAY,
        postgresql_where=_UNDER_WAY,
    ),
    Index(
        "batches_blocked",
        *("run_id", "blocked_reason"),
        sqlite_where=_BLOCKED,
        postgresql_where=_BLOCKED,
    ),
    Index(
        "batches_to_copy",
        *("run_id", "owner_max", "number"),
        sqlite_where=_NEW_COPIES,
        postgresql_where=_NEW_COPIES,
    ),
    Index(
        "batches_by_audit",
        *("run_id", text("coalesce(audited, 0)")),
        sqlite_where=_PUBLISHED,
        postgresql_where=_PUBLISHED,
    ),
)

failures_table = Table(
    "failures",
    metadata,
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("row", _big, primary_key=True),
    Column("key", AnyText(), nullable=False),
    Column("code", AnyText(), nullable=False),
    Column("message", AnyText(), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("batch_id", _big),
    Column("kept", Boolean, nullable=False),
    Column("kept_in", AnyText()),
)

events_table = Table(
    "events",
    metadata,
    Column("id", _big, primary_key=True, autoincrement=True),
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("batch_id", _big),
    Column("at", Float, nullable=False),
    Column("kind", AnyText(), nullable=False),
    Column("source", AnyText()),
    Column("target", AnyText()),
    Column("data", JSON),
    Index("events_by_run", "run_id", "id"),
    Index("events_by_batch", "batch_id", "id"),
    Index(
        "events_marked",
        *("kind", "run_id", "at"),
        sqlite_where=text(MARKED_EVENTS),
        postgresql_where=text(MARKED_EVENTS),
    ),
    # Whoever read up to an id must not meet it again once a run is forgotten.
    sqlite_autoincrement=True,
)

jobs_table = Table(
    "jobs",
    metadata,
    Column("label", AnyText(), primary_key=True),
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("batch_id", _big, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("scope", AnyText(), nullable=False),
    Column("items", Integer, nullable=False),
    Column("tokens", _big, nullable=False),
    Column("state", AnyText(), nullable=False),
    Column("occupies", Boolean, nullable=False),
    Column("remote_name", AnyText()),
    Column("intended_at", Float, nullable=False),
    Column("ended_at", Float),
    Index("jobs_occupying", "scope", "occupies"),
    Index("jobs_by_run", "run_id", "state"),
    Index("jobs_by_batch", "batch_id"),
)

ledger_table = Table(
    "ledger",
    metadata,
    Column("ref", AnyText(), primary_key=True),
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("batch_id", _big),
    Column("kind", AnyText(), nullable=False),
    Column("state", AnyText(), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("rows_failed", Integer, nullable=False),
    Column("rows_again", Integer, nullable=False),
    Column("again_why", AnyText()),
    Column("tokens_bound", _big, nullable=False),
    Column("tokens_estimated", _big, nullable=False),
    Column("tokens", _big),
    Column("usd_bound", Float),
    Column("usd", Float),
    Column("estimated", Boolean, nullable=False),
    Column("at", Float, nullable=False),
    Column("settled_at", Float),
    Index("ledger_by_run", "run_id", "state"),
    Index("ledger_by_batch", "batch_id"),
)

spending_table = Table(
    "spending",
    metadata,
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("spent", Float, nullable=False),
    Column("held", Float, nullable=False),
)
"""Sums over each run's ledger, kept by triggers of the database; see `ledger.roughly_committed`."""

quotas_table = Table(
    "quotas",
    metadata,
    Column("scope", AnyText(), primary_key=True),
    Column("belief", JSON, nullable=False),
    Column("updated_at", Float, nullable=False),
)

calibrations_table = Table(
    "calibrations",
    metadata,
    Column("model", AnyText(), primary_key=True),
    Column("text_bytes", _big, nullable=False),
    Column("tokens", _big, nullable=False),
    Column("updated_at", Float, nullable=False),
)

audits_table = Table(
    "audits",
    metadata,
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("batch_id", _big, primary_key=True),
    Column("row", _big, primary_key=True),
    Column("key", AnyText(), nullable=False),
    Column("cosine", Float, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("at", Float, nullable=False),
)

workers_table = Table(
    "workers",
    metadata,
    Column("id", AnyText(), primary_key=True),
    Column("host", AnyText(), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", AnyText(), nullable=False),
    Column("execution", AnyText(), nullable=False),
    Column("queues", JSON, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("stopped_at", Float),
    Column("steps", _big, nullable=False),
    Column("doing", JSON, nullable=False),
    Column("troubles", JSON, nullable=False),
    Index("workers_by_sight", "seen_at"),
)

notifications_table = Table(
    "notifications",
    metadata,
    Column("id", AnyText(), primary_key=True),
    Column("run_id", AnyText(), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("kind", AnyText(), nullable=False),
    Column("target", AnyText(), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("claim_token", AnyText()),
    Column("claimed_until", Float),
    Column("delivered_at", Float),
    Column("given_up_at", Float),
    Column("error", AnyText()),
    Index("notifications_due", "delivered_at", "next_at"),
    Index("notifications_by_run", "run_id", "at"),
)
