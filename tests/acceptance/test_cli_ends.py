"""The corners of the command line, as processes: what is refused, said, and shown."""

import json
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import embatch
from embatch.errors import NotFoundError

DEADLINE_S = 60


def write_texts(shell, count: int = 30, name: str = "in.jsonl") -> None:
    shell.write_rows(name, [{"id": f"k{n}", "text": f"text {n}"} for n in range(count)])


def test_an_empty_query_is_refused(shell) -> None:
    """There is nothing to look for."""
    write_texts(shell, 3)
    shell.type("run", "in.jsonl", "-o", "out")
    for query in ("", "   "):
        refused = shell.type("search", "out", query)
        assert refused.code == 2
        assert "query is empty" in refused.err


def test_a_complete_run_says_so(shell) -> None:
    """The same command again, with and without --no-wait, does nothing and says it."""
    write_texts(shell)
    line = ["run", "in.jsonl", "-o", "out"]
    first = shell.type(*line)
    assert "already" not in first.out
    for flags in ([], ["--no-wait"]):
        again = shell.type(*line, *flags)
        assert again.code == 0
        assert "is complete already: 30 vectors" in again.out
    assert "is complete already" in shell.type("resume", "out").out


@pytest.mark.parametrize("names", [("x.npy", "x.parquet"), ("x.parquet", "x.embatch")])
def test_two_outputs_never_share_a_folder(shell, names: tuple[str, str]) -> None:
    """x.npy, x.parquet and the folder x.embatch keep their things in one place."""
    write_texts(shell)
    mine, other = names
    assert shell.type("run", "in.jsonl", "-o", mine, "--key", "id").code == 0
    before = {path.name for path in shell.folder.iterdir()}
    refused = shell.type("run", "in.jsonl", "-o", other, "--key", "id")
    assert refused.code == 2
    assert mine in refused.err
    assert "x.embatch" in refused.err
    assert {path.name for path in shell.folder.iterdir()} == before
    assert shell.type("verify", other).code == 2
    assert shell.type("status", other).code == 2
    assert shell.type("status", mine, "--json").json["out"].endswith(mine)


def test_standard_input_leaves_nothing_in_anothers_folder(shell) -> None:
    """The refusal comes before the data are taken in."""
    write_texts(shell)
    shell.type("run", "in.jsonl", "-o", "x.npy")
    refused = shell.type("run", "-", "-o", "x.parquet", stdin=json.dumps({"text": "a"}) + "\n")
    assert refused.code == 2
    assert not list((shell.folder / "x.embatch").rglob("stdin*"))


@pytest.mark.parametrize("old", ["old.npy", "old.parquet"])
def test_every_form_of_output_is_reused(shell, old: str) -> None:
    """--reuse takes the vectors of a matrix or of one file, bit by bit, by their text."""
    write_texts(shell, 100)
    assert shell.type("run", "in.jsonl", "-o", old, "--key", "id").code == 0
    rows = [{"id": f"new-{n}", "text": f"text {n}"} for n in reversed(range(40, 120))]
    shell.write_rows("more.jsonl", rows)
    line = ["run", "more.jsonl", "-o", "new", "--key", "id", "--reuse", old, "--json"]
    status = shell.type(*line).json
    assert (status["reused"], status["written"]) == (60, 80)
    fresh = shell.type("run", "more.jsonl", "-o", "fresh", "--key", "id", "--json").json
    assert fresh["reused"] == 0
    assert vectors(shell, "new") == vectors(shell, "fresh")


def vectors(shell, out: str) -> dict[str, bytes]:
    found = {}
    for path in (shell.folder / out).glob("part-*.parquet"):
        table = pq.read_table(path)
        for key, vector in zip(
            table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True
        ):
            found[key] = np.array(vector, dtype=np.float32).tobytes()
    return found


def test_a_matrix_that_lost_rows_is_not_reused(shell) -> None:
    """Keys and matrix that do not belong together are named."""
    write_texts(shell, 50)
    shell.type("run", "in.jsonl", "-o", "old.npy")
    np.save(shell.folder / "old.npy", np.load(shell.folder / "old.npy")[1:])
    ended = shell.type("run", "in.jsonl", "-o", "new", "--reuse", "old.npy")
    assert ended.code == 1
    assert "old.npy" in ended.err
    assert "50 keys" in ended.err


def test_lists_for_programs_have_no_padding(shell) -> None:
    """A table in a pipe ends its lines where the words end, and shows outputs whole."""
    write_texts(shell, 3)
    shell.type("run", "in.jsonl", "-o", "out", "--key", "id", "--keep", "text", "--name", "mine")
    for command in (["runs"], ["search", "out", "text 1"], ["plan", "in.jsonl"]):
        lines = shell.type(*command).out.splitlines()
        assert lines
        assert [line for line in lines if line != line.rstrip()] == []
    assert str(shell.folder / "out") in shell.type("runs").out


def test_a_run_without_a_process_is_not_called_running(shell) -> None:
    """While a process works on it a run is running; once that is killed, nobody says so."""
    write_texts(shell, 400)
    process = shell.start("run", "in.jsonl", "-o", "out", "--max-batch-items", "20", delay_s=4.0)
    end = time.monotonic() + DEADLINE_S
    while not list((shell.folder / "out").glob("part-*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.05)
    alive = shell.type("status", "out", "--json").json
    assert (alive["state"], alive["worked"], alive["waiting"]) == ("running", True, None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dead = shell.type("status", "out", "--json").json
    assert (dead["state"], dead["worked"], dead["eta_s"]) == ("running", False, None)
    assert f"embatch resume {dead['id']}" in dead["waiting"]
    shown = shell.type("status", "out").out
    assert "unattended" in shown
    assert "running" not in shown
    assert "unattended" in shell.type("runs").out
    assert shell.type("resume", "out").code == 0


def test_what_no_wait_leaves_is_unattended(shell) -> None:
    """Nobody works on what was only submitted, and the object says so."""
    write_texts(shell, 60)
    line = ["run", "in.jsonl", "-o", "out", "--max-batch-items", "10", "--no-wait", "--json"]
    left = shell.type(*line, delay_s=1.5).json
    assert left["worked"] is False
    assert shell.type("status", "out", "--json").json["worked"] is False


def test_python_finds_a_run_by_its_output(shell, monkeypatch) -> None:
    """`get_run` takes what the command takes."""
    write_texts(shell, 5)
    run_id = shell.type("run", "in.jsonl", "-o", "out", "--name", "mine", "--json").json["id"]
    monkeypatch.setenv("EMBATCH_HOME", str(shell.folder / "home"))
    for name in (shell.folder / "out", str(shell.folder / "out"), run_id[:6], "mine"):
        with embatch.get_run(name) as run:
            assert run.id == run_id
    with pytest.raises(NotFoundError):
        embatch.get_run(shell.folder)
