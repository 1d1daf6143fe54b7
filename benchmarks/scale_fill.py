"""Rows as a run leaves them behind, written at once: what happened before a simulation looks."""

from typing import Any

from sqlalchemy import Engine, text

from benchmarks.scale_steps import SCOPE

_LABEL = "'embatch:simulated:' || run_id || ':' || number"
_MINE = "run_id = :run_id AND state = 'planned' AND number < :below"
_FILL = (
    f"INSERT INTO jobs (label, run_id, batch_id, attempt, scope, items, tokens, state, occupies, "
    f"intended_at, ended_at) SELECT {_LABEL}, run_id, id, 1, '{SCOPE}', items, tokens_estimated, "
    f"'ended', :no, 1.0, 2.0 FROM batches WHERE {_MINE}",
    f"INSERT INTO ledger (ref, run_id, batch_id, kind, state, rows, rows_failed, rows_again, "
    f"tokens_bound, tokens_estimated, tokens, usd_bound, usd, estimated, at, settled_at) "
    f"SELECT {_LABEL}, run_id, id, 'batch', 'settled', items, 0, 0, 2000, 1000, 900, 0.01, 0.0045, "
    f":no, 1.0, 2.0 FROM batches WHERE {_MINE}",
    f"INSERT INTO ledger (ref, run_id, batch_id, kind, state, rows, rows_failed, rows_again, "
    f"tokens_bound, tokens_estimated, tokens, usd_bound, usd, estimated, at, settled_at) "
    f"SELECT 'audit:' || {_LABEL}, run_id, id, 'audit', 'void', 8, 0, 0, 20, 20, NULL, 0.001, "
    f"NULL, :no, 1.0, 2.0 FROM batches WHERE {_MINE}",
    *(
        f"INSERT INTO events (run_id, batch_id, at, kind, source, target, data) "
        f"SELECT run_id, id, 1.0, '{kind}', '{source}', '{target}', '{{}}' "
        f"FROM batches WHERE {_MINE}"
        for source, kind, target in (
            ("planned", "upload_started", "uploading"),
            ("uploading", "upload_finished", "uploaded"),
            ("uploaded", "submit_intended", "submitting"),
            ("submitting", "submit_confirmed", "submitted"),
            ("submitted", "results_ready", "ready"),
            ("ready", "collected", "collected"),
            ("collected", "published", "published"),
        )
    ),
    f"UPDATE batches SET state = 'published', attempt = 1, label = {_LABEL}, "
    f"remote_name = 'jobs/1', part = 'p', part_sha256 = 's', part_rows = items, "
    f"part_row_min = row_min, part_row_max = row_max, succeeded = items, tokens = 900, "
    f"submitted_at = 1.0, finished_at = 2.0, part_good = :good WHERE {_MINE}",
)
_ALLOW = "INSERT INTO transitions (kind, source, target) VALUES ('batch', 'planned', 'published')"
_FORBID = (
    "DELETE FROM transitions WHERE kind = 'batch' AND source = 'planned' AND target = 'published'"
)


def publish_first(engine: Engine, run_id: str, *, below: int) -> None:
    """Has the planned batches of a run with numbers under `below` published, jobs, ledger, events
    and all, as if they had been driven."""
    values: dict[str, Any] = {"run_id": run_id, "below": below, "no": False, "good": b"\xff" * 1250}
    with engine.connect() as plain:
        connection = plain.execution_options(embatch_write=True)
        with connection.begin():
            connection.execute(text(_ALLOW))
            for statement in _FILL:
                names = [name for name in values if f":{name}" in statement]
                connection.execute(text(statement), {name: values[name] for name in names})
            connection.execute(text(_FORBID))
