"""`embatch migrate`: the texts of an output under another model, as a process."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import forking
from embatch.testing.cloud import CloudProcess, expected_vectors
from embatch.testing.engine import FakeEngine
from embatch.vectors import normalize

KILLABLE = Path(__file__).with_name("killable.py")
ROWS = 120
OTHER = "other-model"


def text_of(row: int) -> str:
    return f"text number {row} of the catalogue"


def write_texts(shell, name: str = "in.jsonl") -> Path:
    return shell.write_rows(
        name, [{"id": f"k{row}", "body": text_of(row), "n": row} for row in range(ROWS)]
    )


def embed_old(shell, out: str = "old", *flags: str) -> None:
    """The earlier output: keys, a kept column, the texts kept too."""
    write_texts(shell)
    keep = ["--key", "id", "--text", "body", "--keep", "n,body"]
    assert shell.type("run", "in.jsonl", "-o", out, *keep, *flags, "--json").code == 0


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, shell_in):
    """A folder with the earlier output in it, for all who only read it."""
    shell = shell_in(tmp_path_factory.mktemp("embedded"))
    embed_old(shell)
    return shell


def vectors_by_key(folder: Path) -> dict[str, np.ndarray]:
    """What the parts of an output hold."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path)
        flat = table["embedding"].combine_chunks()
        matrix = flat.flatten().to_numpy().reshape(len(flat), -1)
        keys = table["key"].to_pylist()
        assert not found.keys() & set(keys)
        found.update(zip(keys, matrix, strict=True))
    return found


def check_moved(folder: Path) -> None:
    """Every key has the vector of its text."""
    found = vectors_by_key(folder)
    truth = FakeEngine(dims=16).expected([text_of(row) for row in range(ROWS)])
    assert found.keys() == {f"k{row}" for row in range(ROWS)}
    for row in range(ROWS):
        assert np.array_equal(found[f"k{row}"], truth[row])


def test_an_output_moves_to_another_model(embedded) -> None:
    """The same keys, columns and rows, in the other model's space; the old output stays."""
    before = {path.name: path.read_bytes() for path in (embedded.folder / "old").glob("*.parquet")}
    ended = embedded.type("migrate", "old", "-o", "moved", "--model", OTHER, "--yes")
    assert ended.code == 0, ended.err
    assert "to embed" in ended.out
    check_moved(embedded.folder / "moved")
    old = json.loads((embedded.folder / "old" / "manifest.json").read_text())
    new = json.loads((embedded.folder / "moved" / "manifest.json").read_text())
    for name in ("text_column", "key_column", "keep_columns", "inputs"):
        assert new[name] == old[name]
    assert (old["space"]["model"], new["space"]["model"]) == ("fake", OTHER)
    after = {path.name: path.read_bytes() for path in (embedded.folder / "old").glob("*.parquet")}
    assert after == before
    assert embedded.type("verify", "moved").code == 0


def test_it_asks_once(embedded) -> None:
    """No answer and a no leave nothing; after a yes the same command goes on unasked."""
    line = ["migrate", "old", "-o", "asked", "--model", OTHER]
    for answer in ("", "n\n"):
        refused = embedded.type(*line, stdin=answer)
        assert refused.code == 2
        assert "--yes" in refused.err
        assert not (embedded.folder / "asked").exists()
    begun = embedded.type(
        *line, "--max-batch-items", "10", "--timeout", "0.5", stdin="y\n", delay_s=1.0
    )
    assert begun.code == 5, begun.err
    assert "Embed 120 rows of old into asked for about $0.00?" in begun.err
    again = embedded.type(*line, "--max-batch-items", "10", stdin="")
    assert again.code == 0, again.err
    assert "Embed" not in again.err
    check_moved(embedded.folder / "asked")


def test_a_dry_run_leaves_nothing(embedded) -> None:
    """The quote, as a table or an object, and no output, run or file."""
    line = ["migrate", "old", "-o", "dry", "--model", OTHER, "--dry-run"]
    assert "to embed" in embedded.type(*line).out
    quoted = embedded.type(*line, "--json").json
    assert (quoted["rows"], quoted["to_embed"], quoted["model"]) == (ROWS, ROWS, OTHER)
    assert not (embedded.folder / "dry").exists()
    names = {run["out"] for run in embedded.type("runs", "--json").json["runs"]}
    assert str(embedded.folder / "old") in names
    assert str(embedded.folder / "dry") not in names


def test_a_source_that_changed_is_refused(shell) -> None:
    """The file is named, and both ways out; each of them works."""
    embed_old(shell)
    source = shell.folder / "in.jsonl"
    source.rename(shell.folder / "moved.jsonl")
    line = ["migrate", "old", "--model", OTHER, "--json"]
    gone = shell.type(*line, "-o", "new")
    assert gone.code == 1
    assert "in.jsonl, which is gone" in gone.err
    assert "--source FILE" in gone.err
    assert "--source old" in gone.err
    shell.write_rows("in.jsonl", [{"id": "k0", "body": "another", "n": 0}])
    assert "changed since" in shell.type(*line, "-o", "new").err
    assert not (shell.folder / "new").exists()
    assert shell.type(*line, "-o", "new", "--source", "moved.jsonl").code == 0
    check_moved(shell.folder / "new")
    assert shell.type(*line, "-o", "kept", "--source", "old").code == 0
    check_moved(shell.folder / "kept")


def test_another_source_is_compared_with_what_was_embedded(embedded) -> None:
    """Texts that the output never saw are counted; a file without any of its texts is refused."""
    rows = [{"id": f"k{n}", "body": text_of(n), "n": n} for n in range(100, ROWS + 10)]
    embedded.write_rows("later.jsonl", rows)
    embedded.write_rows("wrong.jsonl", [{"id": "k", "body": "something else", "n": 0}])
    line = ["migrate", "old", "-o", "compared", "--model", OTHER, "--dry-run", "--source"]
    assert "old embedded 20 of these 30 texts" in embedded.type(*line, "later.jsonl").err
    refused = embedded.type(*line, "wrong.jsonl")
    assert refused.code == 2
    assert "check --source" in refused.err


@pytest.mark.parametrize("old", ["old.parquet", "old.npy"])
def test_kept_texts_of_one_file_move_too(shell, old: str) -> None:
    """The texts of a single file, or of the keys beside a matrix."""
    embed_old(shell, old)
    (shell.folder / "in.jsonl").unlink()
    ended = shell.type("migrate", old, "-o", "new", "--model", OTHER, "--source", old, "--json")
    assert ended.code == 0, ended.err
    check_moved(shell.folder / "new")


def test_texts_that_are_not_kept_cannot_be_taken(shell) -> None:
    """`--source OLD_OUT` without the text column says how it would have worked."""
    write_texts(shell)
    shell.type("run", "in.jsonl", "-o", "old", "--key", "id", "--text", "body")
    line = ["migrate", "old", "-o", "new", "--model", OTHER, "--yes"]
    refused = shell.type(*line, "--source", "old")
    assert refused.code == 2
    assert "--keep body" in refused.err
    assert shell.type(*line).code == 0


def test_rows_that_failed_are_told(shell) -> None:
    """Of kept texts those of failed rows are missing: how many is said."""
    rows = [{"text": text_of(row)} for row in range(5)] + [{"text": "poison"}]
    shell.write_rows("in.jsonl", rows)
    shell.type("run", "in.jsonl", "-o", "old", "--keep", "text")
    ended = shell.type("migrate", "old", "-o", "new", "--model", OTHER, "--source", "old", "--yes")
    assert ended.code == 0, ended.err
    assert "1 row failed then" in ended.err
    assert vectors_by_key(shell.folder / "new").keys() == {str(row) for row in range(5)}


def test_data_without_a_file_want_a_source(shell) -> None:
    """What came from standard input is gone once its run is complete."""
    lines = "".join(json.dumps({"text": text_of(row)}) + "\n" for row in range(5))
    shell.type("run", "-", "-o", "old", stdin=lines)
    refused = shell.type("migrate", "old", "-o", "new", "--model", OTHER, "--yes")
    assert refused.code == 2
    assert "--source FILE" in refused.err


def test_the_same_space_is_no_move(embedded) -> None:
    """The output holds these vectors already."""
    refused = embedded.type("migrate", "old", "-o", "same", "--model", "fake", "--yes")
    assert refused.code == 2
    assert "already" in refused.err
    assert not (embedded.folder / "same").exists()
    moved = embedded.type("migrate", "old", "-o", "same", "--model", "fake", "--dims", "8", "--yes")
    assert moved.code == 0, moved.err


def test_a_model_of_the_clouds_wants_their_name(embedded) -> None:
    """A local output does not tell which cloud is meant."""
    refused = embedded.type(
        "migrate", "old", "-o", "cloudy", "--model", "gemini-embedding-001", "--yes"
    )
    assert refused.code == 2
    assert "--provider gemini" in refused.err


def test_a_move_to_a_cloud_survives_a_kill(shell, tmp_path_factory) -> None:
    """Killed after a batch was created; the same command pays no row twice, and asks nothing."""
    embed_old(shell)
    with CloudProcess(state=tmp_path_factory.mktemp("cloud")) as cloud:
        shell.variables.update(
            GOOGLE_API_KEY=cloud.api_key, GOOGLE_GEMINI_BASE_URL=cloud.gemini_url
        )
        line = ["migrate", "old", "-o", "new", "--provider", "gemini", "--dims", "128", "--json"]
        line += ["--model", "gemini-embedding-001", "--task-type", "retrieval_document"]
        line += ["--max-batch-items", "40", "--poll-interval", "0.1", "--settle", "3"]
        line += ["--audit", "off", "--no-probe"]
        killed = killable(shell, "submit.done:1", *line)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = killable(shell, "-", *line)
        assert done.returncode == 0, done.stderr
        bill = cloud.bill()
        assert (bill.texts, bill.rows_billed_twice, bill.duplicate_jobs) == (ROWS, 0, {})
        again = killable(shell, "-", *line)
        assert json.loads(again.stdout)["id"] == json.loads(done.stdout)["id"]
    found = vectors_by_key(shell.folder / "new")
    made = expected_vectors(
        [text_of(row) for row in range(ROWS)], dims=128, task_type="retrieval_document"
    )
    for row, vector in enumerate(normalize(made)):
        assert np.array_equal(found[f"k{row}"], vector)


def killable(shell, kill_at: str, *line: str) -> subprocess.CompletedProcess[str]:
    """The command with a kill -9 at a checkpoint."""
    return forking.run(
        [sys.executable, str(KILLABLE), kill_at, "-", "-", "--", *line],
        env=shell.environ(),
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
