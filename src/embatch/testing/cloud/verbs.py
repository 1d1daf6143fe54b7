"""What each control does to a cloud."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embatch.testing.cloud.core import Core
from embatch.testing.cloud.faults import Fault
from embatch.testing.cloud.words import JOB_ID_CHARS, made_id


def verbs_of(core: Core, crashes: list[str]) -> dict[str, Callable[..., Any]]:
    """The controls by name; arguments and values are plain JSON."""
    board, ledger, jobs = core.board, core.ledger, core.jobs
    return {
        "add_fault": lambda **fault: board.add(Fault(**fault)),
        "clear_faults": board.clear,
        "faults": board.faults,
        "now": core.clock.now,
        "advance": core.advance,
        "finish": jobs.finish,
        "jobs": jobs.all,
        "bill": lambda: ledger.bill().to_json(),
        "times_billed": lambda text, model=None: ledger.times_billed(_digest(text), model),
        "rows_by_digest": ledger.rows_by_digest,
        "revoke_tokens": lambda: _revoke_tokens(core),
        "prepare_batch": lambda **asked: _prepare(core, **asked),
        "crashes": lambda: list(crashes),
    }


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _revoke_tokens(core: Core) -> None:
    with core.store.transaction() as database:
        database.execute("DELETE FROM docs WHERE kind = 'token'")


def _prepare(core: Core, *, path: str, rows: int, display_name: str, model: str | None) -> str:
    number = core.store.next_number("job")
    job_id = made_id(core.settings.seed, "job", number, JOB_ID_CHARS)
    folder = core.store.folder / "jobs" / job_id
    folder.mkdir()
    place = folder / "output-0.jsonl"
    place.symlink_to(Path(path).resolve(strict=True))
    now = core.clock.now()
    job: dict[str, Any] = {
        "name": f"batches/{job_id}",
        "id": job_id,
        "api": "gemini",
        "model": model or "gemini-embedding-001",
        "display_name": display_name,
        "priority": 0,
        "rows": rows,
        "tokens": 0,
        "created_s": now,
        "updated_s": now,
        "due_s": now,
        "listed_s": now,
        "ended_s": now,
        "cancel_s": None,
        "stuck": None,
        "state": "SUCCEEDED",
        "error": None,
        "output": [str(place.relative_to(core.store.folder))],
        "succeeded": rows,
        "failed": 0,
        "extra": {"file_name": "files/prepared"},
    }
    core.store.put("job", job["name"], job)
    return str(job["name"])
