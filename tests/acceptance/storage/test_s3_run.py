"""Commands on S3: inputs, folders and single files, and what is said when something is wrong."""

import io
import json
import signal
import subprocess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.timeout(300)


def test_every_command_takes_an_output_on_s3(bucket: Any) -> None:
    """From run to forget."""
    out = bucket.url("out")
    bucket.run("out")
    bucket.check("out")
    assert json.loads(bucket.type("verify", out, "--json"))["sound"]
    assert "key-3" in bucket.type("search", out, "text number 3", "-k", "1")
    assert json.loads(bucket.type("audit", out, "--sample", "5", "--json"))["sound"]
    assert "key-43" in bucket.type("failures", out)
    again = bucket.type("retry", out, "--json", code=3)
    assert json.loads(again)["state"] == "completed_with_failures"
    bucket.check("out")
    assert "forgotten" in bucket.type("forget", out, "--yes")
    assert not bucket.names("out/.work/")
    assert json.loads(bucket.type("verify", out, "--json"))["sound"]


def test_an_output_on_s3_moves_to_another_model(bucket: Any) -> None:
    """From the inputs that its manifest names, on S3 too."""
    bucket.put("few.txt", b"one\ntwo\nthree\n")
    old, new = bucket.url("old"), bucket.url("new")
    bucket.type("run", bucket.url("few.txt"), "-o", old, fake_models="yes")
    flags = ("--model", "other", "--yes", "--json")
    said = json.loads(bucket.type("migrate", old, "-o", new, *flags, fake_models="yes"))
    assert (said["model"], said["written"]) == ("other", 3)
    assert bucket.manifest("new")["inputs"] == bucket.manifest("old")["inputs"]


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_single_file_on_s3_is_put_there_whole(bucket: Any, form: str) -> None:
    """Sorted by row, and its vectors serve another run."""
    bucket.run(f"all.{form}")
    wanted = {key: text for key, text in bucket.texts.items() if text and "poison" not in text}
    if form == "npy":
        table = pq.read_table(io.BytesIO(bucket.get("all.keys.parquet")))
        matrix = np.load(io.BytesIO(bucket.get("all.npy")))
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
        table = table.append_column("embedding", column)
    else:
        table = pq.read_table(io.BytesIO(bucket.get("all.parquet")))
    assert table["row"].to_pylist() == sorted(table["row"].to_pylist())
    bucket.check_rows([table], wanted)
    out = bucket.url(f"all.{form}")
    assert json.loads(bucket.type("verify", out, "--json"))["sound"]
    status = json.loads(bucket.run("new", "--reuse", out))
    assert status["reused"] >= len(set(wanted.values()))
    bucket.check("new")


def test_inputs_on_s3_of_every_kind_are_one_stream(bucket: Any) -> None:
    """Parquet, CSV and compressed JSONL, by glob, in the order of their names."""
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), table)
    bucket.put("many/a.parquet", table.getvalue())
    bucket.put("many/b.csv", b"text\nthree\n")
    lines = pa.BufferOutputStream()
    with pa.CompressedOutputStream(lines, "gzip") as stream:
        stream.write(b'{"text": "four"}\n{"text": "five"}\n')
    bucket.put("many/deep/c.jsonl.gz", lines.getvalue().to_pybytes())
    quoted = json.loads(bucket.type("plan", bucket.url("many/**/*.*"), "--json"))
    assert (quoted["rows"], quoted["free_bytes"] is not None) == (5, True)
    local = bucket.folder / "out"
    said = bucket.type("run", bucket.url("many/**/*.*"), "-o", str(local), "--json")
    assert json.loads(said)["written"] == 5
    tables = [pq.read_table(path) for path in local.glob("part-*.parquet")]
    rows = pa.concat_tables(tables).sort_by("row")
    assert rows["key"].to_pylist() == ["0", "1", "2", "3", "4"]
    manifest = json.loads((local / "manifest.json").read_text())
    assert [one["path"] for one in manifest["inputs"]] == [
        bucket.url(name) for name in ("many/a.parquet", "many/b.csv", "many/deep/c.jsonl.gz")
    ]


def test_an_input_on_s3_that_changed_is_refused(bucket: Any) -> None:
    """It is known by its etag, whatever its size and time."""
    bucket.run("out")
    old = bucket.get("in/texts.jsonl")
    bucket.put("in/texts.jsonl", old.replace(b"number 2", b"number 9"))
    said = bucket.run("out", code=2)
    assert "etag of" in said
    bucket.put("in/texts.jsonl", old)
    bucket.run("out")


def test_data_of_standard_input_are_kept_in_the_bucket(bucket: Any) -> None:
    """So that the run goes on when the process that read them is dead."""
    out = bucket.url("out")
    process = bucket.start("run", "-", "-o", out, kill_at="plan.digested:1", stdin=subprocess.PIPE)
    process.communicate('{"text": "one"}\n{"text": "two"}\n', timeout=60)
    assert process.returncode == -signal.SIGKILL
    (kept,) = bucket.names("out/.work/spool/")
    assert bucket.get(kept) == b'{"text": "one"}\n{"text": "two"}\n'
    assert json.loads(bucket.type("resume", out, "--json"))["written"] == 2
    assert not bucket.names("out/.work/")


def test_what_is_wrong_is_said_with_its_place_and_what_to_do(bucket: Any) -> None:
    """Bucket, object, credentials, endpoint, extra words."""
    source = bucket.url("in/texts.jsonl")
    said = bucket.type("run", source, "-o", "s3://no-such-bucket/out", code=2)
    assert "there is no bucket s3://no-such-bucket" in said
    assert "create it" in said
    said = bucket.type("run", bucket.url("in/none.jsonl"), "-o", bucket.url("out"), code=2)
    assert f"there is no object {bucket.url('in/none.jsonl')}" in said
    said = bucket.type("run", bucket.url("in"), "-o", bucket.url("out"), code=2)
    assert "give its files" in said
    said = bucket.type("verify", bucket.url("nothing"), code=2)
    assert "is no output of a run" in said
    nobody = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    said = bucket.type("verify", bucket.url("out"), code=2, **nobody)
    assert "no AWS credentials" in said
    plain = {"AWS_ENDPOINT_URL_S3": "http://storage.example:9000"}
    said = bucket.type("verify", bucket.url("out"), code=2, **plain)
    assert "without encryption" in said
    said = bucket.type("verify", "s3a://bucket/out", code=2)
    assert "s3://" in said
    assert not bucket.names("out")
