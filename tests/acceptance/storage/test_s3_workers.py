"""Two worker processes on a run whose inputs, stages, parts and manifest all lie on S3."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from crew import Crew, eventually

from embatch.journal.store import Journal

pytestmark = pytest.mark.timeout(300)

FLAGS = ("--key", "id", "--max-batch-items", "16", "--poll-interval", "0.02", "--json")


def test_two_workers_write_on_s3_what_one_process_writes(
    bucket: Any, postgres_url: str, tmp_path: Path
) -> None:
    """Both take steps, the output is sound and that of one machine; a part that is taken away
    later is missed."""
    out, inputs, journal = bucket.url("out"), bucket.url("in/*.jsonl"), Journal.open(postgres_url)
    with Crew(tmp_path, postgres_url, variables=bucket.s3.environ(), delay_s=0.1) as crew:
        alone = bucket.start(*bucket.run_command("alone"))
        workers = [crew.worker("--concurrency", "1", home=f"machine-{n}") for n in range(2)]
        alive = journal.workers.every
        eventually(lambda: len(alive()) == len(workers), "two workers" + crew.said())
        crew.type("run", inputs, "-o", out, *FLAGS, "--execution", "workers", code=3)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(60) for worker in workers] == [143, 143], crew.said()
        assert all(one.steps > 0 for one in journal.workers.every())
        journal.close()
        assert json.loads(crew.type("verify", out, "--json").stdout)["sound"]
        bucket.check("out")
        said = alone.communicate(timeout=100)
        assert alone.returncode == 3, said
        assert _rows(bucket, "out") == _rows(bucket, "alone")
        part = bucket.manifest("out")["parts"][0]["name"]
        bucket.s3.client().delete_object(Bucket=bucket.name, Key=f"out/{part}")
        missed = crew.type("run", inputs, "-o", out, *FLAGS, "--execution", "workers", code=1)
        assert f"lacks {part}" in missed.stderr


def _rows(bucket: Any, out: str) -> list[Any]:
    """Every row of an output, by key, with all that the columns hold."""
    names = [part["name"] for part in bucket.manifest(out)["parts"]]
    rows = [row for name in names for row in bucket.table(f"{out}/{name}").to_pylist()]
    return sorted(rows, key=lambda row: row["key"])
