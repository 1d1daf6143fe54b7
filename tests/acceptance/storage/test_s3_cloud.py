"""A run that buys its vectors on a cloud and keeps everything on S3, killed again and again."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embatch.testing.cloud import CloudProcess, expected_vectors
from embatch.vectors import normalize

pytestmark = pytest.mark.timeout(600)

ROWS = 600
DIMS = 128
DEATHS = ("upload.done", "submit.intended", "submit.done", "results.joined", "part.renamed")


def test_a_run_on_s3_pays_for_each_row_once(bucket: Any, tmp_path: Path) -> None:
    """Whatever machine it dies on: none of them has anything of its own but the shared journal."""
    texts = {f"key-{row}": f"text number {row} of the catalogue" for row in range(ROWS)}
    lines = [json.dumps({"id": key, "text": text}) for key, text in texts.items()]
    bucket.put("in/texts.jsonl", "\n".join(lines).encode())
    cloud = CloudProcess(state=tmp_path / "cloud", job_duration_s=0.1)
    cloud.start()
    more = {
        "EMBATCH_JOURNAL_URL": str(tmp_path / "shared.db"),
        "GOOGLE_API_KEY": cloud.api_key,
        "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
    }
    flags = ["--provider", "gemini", "--dims", str(DIMS), "--task-type", "retrieval_document"]
    flags += ["--max-batch-items", "100", "--settle", "2", "--no-probe", "--audit", "off"]
    try:
        for number, death in enumerate(DEATHS):
            home = f"machine-{number}"
            bucket.killed("out", f"{death}:1", flags=flags, home=home, **more)
        bucket.run("out", *flags, code=0, home="last", **more)
        bill = cloud.bill()
    finally:
        crashed = cloud.crashes()
        cloud.stop()
    assert crashed == []
    assert (bill.texts, bill.rows_billed_twice, bill.duplicate_jobs) == (ROWS, 0, {})
    parts = bucket.manifest("out")["parts"]
    tables = [pq.read_table(io.BytesIO(bucket.get(f"out/{part['name']}"))) for part in parts]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert sorted(keys) == sorted(texts)
    found = [table["embedding"].combine_chunks().flatten().to_numpy() for table in tables]
    wanted = expected_vectors(
        [texts[key] for key in keys], dims=DIMS, task_type="retrieval_document"
    )
    assert np.array_equal(np.concatenate(found).reshape(-1, DIMS), normalize(wanted))
    assert not bucket.names("out/.work/")
