"""Runs on S3 that are killed, taken over and shared: every key once, and nothing else counts."""

import json
import shutil
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

DEATHS = (
    "plan.digested:1",
    "stage.written:2",
    "copies.staged:1",
    "part.written:1",
    "part.journaled:1",
    "part.renamed:1",
    "part.published:1",
    "finish.failures:1",
    "finish.manifest:1",
    "finish.journaled:1",
)
"""The batch of copies is left at least when the parts' turn comes: whatever the machine's pace."""


def test_a_run_on_s3_killed_around_every_write_ends_as_a_whole_one(bucket: Any) -> None:
    """One start after another dies a step later; then it ends, and passes verify."""
    for death in DEATHS:
        bucket.killed("out", death)
    bucket.run("out")
    bucket.check("out")
    report = json.loads(bucket.type("verify", bucket.url("out"), "--json"))
    assert report["sound"]
    assert report["finished"]
    status = json.loads(bucket.type("status", bucket.url("out"), "--json"))
    assert (status["written"], status["failed"]) == (report["rows"], report["failed"])


def test_a_part_that_is_written_and_not_published_is_no_part(bucket: Any) -> None:
    """Whoever reads meanwhile sees published parts alone; the other file is gone in the end."""
    bucket.killed("out", "part.journaled:3")
    objects = [name for name in bucket.names("out/") if "/part-" in name]
    counted = [name for name in objects if "/.published/" in name]
    stray = bucket.names("out/part-")
    assert len(stray) > len(counted)
    report = json.loads(bucket.type("verify", bucket.url("out"), "--json"))
    assert report["sound"]
    assert report["files"] == len(counted)
    bucket.run("out")
    bucket.check("out")


def test_another_machine_goes_on_from_what_lies_in_the_bucket(bucket: Any) -> None:
    """It shares the journal, and has neither stage nor digest nor part of its own."""
    journal = str(bucket.folder / "shared.db")
    for number, death in enumerate(("plan.digested:1", "upload.done:2", "part.journaled:2")):
        bucket.killed("out", death, home=f"machine-{number}", EMBATCH_JOURNAL_URL=journal)
        shutil.rmtree(bucket.folder / f"machine-{number}")
    bucket.run("out", home="machine-last", EMBATCH_JOURNAL_URL=journal)
    bucket.check("out")


def test_an_output_on_s3_whose_journal_is_gone_is_adopted(bucket: Any) -> None:
    """Its parts are taken over after a look, and nothing but the poison is embedded again."""
    bucket.run("out")
    shutil.rmtree(bucket.folder / "home")
    for death in ("adopt.verified:1", "adopt.claimed:1"):
        bucket.killed("out", death)
    trace = bucket.folder / "trace"
    bucket.run("out", trace=str(trace))
    bucket.check("out")
    assert trace.read_text().split().count("submit.done") == 1


def test_a_journal_that_lost_its_output_writes_no_more(bucket: Any) -> None:
    """Another journal took it over and finished it: the first is refused, and changes nothing."""
    bucket.killed("out", "part.published:1", home="first")
    bucket.run("out", home="second")
    bucket.check("out")
    before = bucket.names("out/")
    run_id = bucket.manifest("out")["run_id"]
    said = bucket.type("resume", run_id, home="first", code=2)
    assert "belongs to another journal" in said
    assert bucket.names("out/") == before
    bucket.check("out")
