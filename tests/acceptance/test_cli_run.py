"""The commands that make runs and work on them, as processes."""

import json
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq

DEADLINE_S = 60


def write_texts(shell, count: int = 200, name: str = "in.jsonl") -> None:
    shell.write_rows(name, [{"id": f"k{n}", "text": f"text {n}", "n": n} for n in range(count)])


def until(condition: Callable[[], bool]) -> None:
    """Polls `condition`; fails after a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def parts(shell, out: str = "out") -> int:
    return len(list((shell.folder / out).glob("part-*.parquet")))


def test_a_run_writes_what_it_says(shell) -> None:
    """`run` embeds a file; the summary is on standard output, progress on standard error."""
    write_texts(shell)
    ended = shell.type("run", "in.jsonl", "-o", "out", "--key", "id", "--keep", "n,text")
    assert ended.code == 0
    assert "200 vectors of 16 dims" in ended.out
    assert "completed, 100%" in ended.err
    (part,) = (shell.folder / "out").glob("part-*.parquet")
    table = pq.read_table(part)
    assert table.column_names == ["key", "row", "text_sha256", "embedding", "n", "text"]
    assert table["text"].to_pylist() == [f"text {row}" for row in table["row"].to_pylist()]


def test_json_prints_one_object_and_nothing_else(shell) -> None:
    """With --json and no terminal, standard output is one object, standard error is silent."""
    write_texts(shell)
    ended = shell.type("run", "in.jsonl", "-o", "out", "--json")
    assert ended.out.count("\n") == 1
    assert ended.err == ""
    assert ended.json["state"] == "completed"
    assert ended.json["exit_code"] == 0


def test_an_error_is_an_object_too(shell) -> None:
    """With --json a refused command still gives its one object."""
    ended = shell.type("run", "nowhere.jsonl", "-o", "out", "--json")
    assert ended.code == 2
    assert ended.json["error_code"] == "InvalidRequestError"
    assert ended.json["exit_code"] == 2


def test_the_same_command_again_does_nothing_twice(shell) -> None:
    """A complete run is found complete."""
    write_texts(shell)
    first = shell.type("run", "in.jsonl", "-o", "out", "--json").json
    again = shell.type("run", "in.jsonl", "-o", "out", "--json").json
    assert (again["id"], again["finished_at"]) == (first["id"], first["finished_at"])


def test_a_single_npy_file_is_searched_and_verified(shell) -> None:
    """`-o x.npy` gives a matrix and its keys; verify and search read it."""
    write_texts(shell, 50)
    assert shell.type("run", "in.jsonl", "-o", "x.npy", "--key", "id").code == 0
    assert np.load(shell.folder / "x.npy").shape == (50, 16)
    assert shell.type("verify", "x.npy", "--json").json["rows"] == 50
    hits = shell.type("search", "x.npy", "text 7", "-k", "2", "--json").json["hits"]
    assert hits[0]["key"] == "k7"
    assert hits[0]["score"] > 0.999
    assert len(hits) == 2


def test_timeout_stops_the_waiting_and_not_the_run(shell) -> None:
    """--timeout exits 5; resume finishes the run."""
    write_texts(shell)
    ended = shell.type(
        *("run", "in.jsonl", "-o", "out", "--max-batch-items", "20", "--timeout", "0.5"),
        delay_s=0.3,
    )
    assert ended.code == 5
    assert "embatch resume" in ended.err
    assert shell.type("resume", "out").code == 0
    assert shell.type("verify", "out", "--json").json["rows"] == 200


def interrupt(shell, number: signal.Signals) -> int:
    """Sends a signal to a run that has a part, and gives its exit code."""
    write_texts(shell, 400)
    process = shell.start("run", "in.jsonl", "-o", "out", "--max-batch-items", "20", delay_s=0.2)
    until(lambda: parts(shell) > 0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert "embatch resume" in errors
    return int(process.returncode)


def test_ctrl_c_stops_gently_and_resumes(shell) -> None:
    """SIGINT ends the run after the step in hand, exit 130; resume completes it."""
    assert interrupt(shell, signal.SIGINT) == 130
    assert shell.type("resume", "out").code == 0
    assert shell.type("verify", "out", "--json").json["rows"] == 400


def test_a_termination_is_told_from_an_interrupt(shell) -> None:
    """SIGTERM exits 143, resumable."""
    assert interrupt(shell, signal.SIGTERM) == 143


def test_a_second_interrupt_ends_at_once(shell) -> None:
    """Two SIGINT: the process does not wait for the engine; nothing is lost by it."""
    write_texts(shell, 100)
    process = shell.start("run", "in.jsonl", "-o", "out", delay_s=30.0)
    until(lambda: any((shell.folder / "out").glob(".work/stage/*")))
    process.send_signal(signal.SIGINT)
    while "once more stops at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert time.monotonic() - started < 5
    assert shell.type("resume", "out").code == 0


def test_no_wait_returns_and_a_worker_finishes(shell) -> None:
    """`run --no-wait` prints how to go on; `worker --once` works every run there is."""
    write_texts(shell)
    write_texts(shell, 100, "more.jsonl")
    for name, out in (("in.jsonl", "out"), ("more.jsonl", "more")):
        ended = shell.type(
            *("run", name, "-o", out, "--max-batch-items", "10", "--no-wait", "--name", out),
            delay_s=0.6,
        )
        assert ended.code == 0
        assert "embatch resume" in ended.out
        assert shell.type("status", out, "--json").json["state"] == "running"
    worked = shell.type("worker", "--once", "--json")
    assert worked.code == 0
    assert {run["state"] for run in worked.json["runs"]} == {"completed"}
    assert shell.type("verify", "more", "--json").json["rows"] == 100


def test_no_wait_refuses_duplicate_keys(shell) -> None:
    """Planning is done before --no-wait returns: bad data is still a usage error."""
    shell.write_rows("in.jsonl", [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}])
    assert shell.type("run", "in.jsonl", "-o", "out", "--key", "id", "--no-wait").code == 2


def test_watch_follows_another_process(shell) -> None:
    """`watch` sees the run of another process to its end, and takes its exit code."""
    shell.write_rows("in.jsonl", [{"text": f"text {n}" if n else ""} for n in range(100)])
    process = shell.start("run", "in.jsonl", "-o", "out", "--max-batch-items", "10", delay_s=0.1)
    until(lambda: parts(shell) > 0)
    watched = shell.type("watch", "out", "--json")
    process.communicate(timeout=DEADLINE_S)
    assert watched.code == process.returncode == 3
    assert watched.json["written"] == 99


def test_a_cancelled_run_resumes(shell) -> None:
    """`cancel` stops a run that is submitted; `resume` completes it."""
    write_texts(shell)
    shell.type(
        *("run", "in.jsonl", "-o", "out", "--max-batch-items", "10", "--no-wait"), delay_s=0.3
    )
    assert shell.type("cancel", "out").code == 0
    assert shell.type("status", "--json").json["state"] == "cancelled"
    assert shell.type("cancel", "out").code == 0, "cancelling again asks again, after a crash too"
    assert shell.type("resume", "out").code == 0
    assert shell.type("cancel", "out").code == 2
    assert shell.type("verify", "out", "--json").json["rows"] == 200


def test_failed_rows_are_listed_and_tried_again(shell) -> None:
    """A poisoned row fails alone; retry sends its kept text once more; forget drops it."""
    shell.write_rows("in.jsonl", [{"text": f"text {n}"} for n in range(20)] + [{"text": "poison"}])
    ended = shell.type("run", "in.jsonl", "-o", "out", "--json")
    assert (ended.code, ended.json["failed"], ended.json["written"]) == (3, 1, 20)
    run_id = ended.json["id"]
    listed = shell.type("failures", run_id)
    assert "embatch retry" in listed.out
    assert "poison" not in listed.out, "a user's text is shown"
    assert shell.type("retry", run_id).code == 3
    assert shell.type("forget", run_id, "--yes").code == 0
    assert shell.type("retry", run_id).code == 2
    assert shell.type("search", "out", "text 3", "-k", "1", "--json").json["hits"][0]["row"] == 3


def test_forget_asks_first(shell) -> None:
    """Without --yes a no, or no answer, keeps the run."""
    write_texts(shell, 5)
    run_id = shell.type("run", "in.jsonl", "-o", "out", "--json").json["id"]
    for answer in ("n\n", ""):
        refused = shell.type("forget", run_id, stdin=answer)
        assert refused.code == 2
        assert "--yes" in refused.err
    assert shell.type("status", run_id).code == 0
    assert shell.type("forget", run_id, stdin="y\n").code == 0
    assert shell.type("status", run_id).code == 2


def test_a_run_is_found_by_every_name(shell) -> None:
    """Id, beginning of an id, name, output, and nothing for the latest."""
    write_texts(shell, 5)
    run_id = shell.type(
        *("run", "in.jsonl", "-o", "out", "--name", "mine", "--tag", "team=a", "--json")
    ).json["id"]
    for name in ([run_id], [run_id[:6]], ["mine"], ["out"], []):
        assert shell.type("status", *name, "--json").json["id"] == run_id
    assert len(shell.type("runs", "--tag", "team=a", "--json").json["runs"]) == 1
    assert shell.type("runs", "--tag", "team=b", "--json").json["runs"] == []


def test_a_tag_without_a_value_is_a_usage_error(shell) -> None:
    """--tag wants K=V."""
    write_texts(shell, 5)
    assert shell.type("run", "in.jsonl", "-o", "out", "--tag", "team").code == 2


def test_a_name_or_tag_that_no_list_can_show_is_a_usage_error(shell) -> None:
    """Nothing is made then, and the message does not hold it whole."""
    write_texts(shell, 5)
    for long in (
        ("--name", "x" * 201),
        ("--tag", f"team={'x' * 201}"),
        ("--tag", f"{'x' * 201}=a"),
    ):
        refused = shell.type("run", "in.jsonl", "-o", "out", *long)
        assert (refused.code, "201 characters: give 200 or fewer" in refused.err) == (2, True)
        assert "x" * 30 not in refused.err
    assert not (shell.folder / "out").exists()


def test_verify_names_what_is_wrong(shell) -> None:
    """A part changed behind embatch's back: exit 1, naming the part."""
    write_texts(shell)
    shell.type("run", "in.jsonl", "-o", "out", "--max-batch-items", "100")
    first, second = sorted((shell.folder / "out").glob("part-*.parquet"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 0xFF
    first.write_bytes(content)
    second.unlink()
    ended = shell.type("verify", "out", "--json")
    assert ended.code == 1
    problems = " ".join(ended.json["problems"])
    assert first.name in problems
    assert f"{second.name}: the part is missing" in problems


def test_reuse_takes_vectors_of_an_earlier_output(shell) -> None:
    """--reuse embeds only what the earlier output lacks."""
    write_texts(shell, 100)
    shell.type("run", "in.jsonl", "-o", "old")
    write_texts(shell, 120, "more.jsonl")
    quoted = shell.type("plan", "more.jsonl", "--reuse", "old", "--json").json
    assert (quoted["reused"], quoted["to_embed"]) == (100, 20)
    ended = shell.type("run", "more.jsonl", "-o", "new", "--reuse", "old", "--json").json
    assert (ended["reused"], ended["written"]) == (100, 120)
    assert shell.type("verify", "new").code == 0


def test_plan_quotes_and_leaves_nothing(shell) -> None:
    """`plan` counts rows, copies, empties and batches; no run, no output, no spool is left."""
    rows = [{"text": "same"}, {"text": "same"}, {"text": ""}, {"text": "other"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    quoted = shell.type("plan", "-", "--json", stdin=lines)
    assert quoted.code == 0
    wanted = {"rows": 4, "empty": 1, "copies": 1, "to_embed": 2, "batches": 1, "cost_usd": 0.0}
    assert {name: quoted.json[name] for name in wanted} == wanted
    assert quoted.json["vector_bytes"] == 3 * 16 * 4
    assert quoted.json["texts_per_s"] > 0
    assert os.listdir(shell.folder) == []  # noqa: PTH208 - names alone
    assert "100 to 200 rows" in shell.type("plan", "-", stdin=lines).out


def test_plan_takes_the_command_line_of_a_run(shell) -> None:
    """Every flag of `run` is a flag of `plan`: what is quoted is what runs."""
    write_texts(shell, 30)
    line = ["in.jsonl", "-o", "out", "--name", "nightly", "--tag", "team=search"]
    line += ["--priority", "3"]
    line += ["--poll-interval", "1", "--timeout", "60", "--too-long", "cut", "--alert-below", "50"]
    assert shell.type("plan", *line, "--json").json["rows"] == 30
    assert not (shell.folder / "out").exists()
    assert shell.type("run", *line, "--json").json["written"] == 30


def test_priority_stays_until_another_one_is_given(shell) -> None:
    """A restart without the flag keeps the priority; 0 takes it back."""
    write_texts(shell, 3)
    seen = [
        shell.type("run", "in.jsonl", "-o", "out", *flags, "--json").json["priority"]
        for flags in (["--priority", "5"], [], ["--priority", "0"])
    ]
    assert seen == [5, 5, 0]


def test_stdin_is_spooled_and_resumable(shell) -> None:
    """`-` reads JSONL from standard input; what was read is safe from then on."""
    lines = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(60))
    ended = shell.type(
        *("run", "-", "-o", "out", "--max-batch-items", "10", "--timeout", "0.5"),
        stdin=lines,
        delay_s=0.4,
    )
    assert ended.code == 5
    assert shell.type("resume", "out", "--json").json["written"] == 60


def test_the_log_goes_to_standard_error_as_json(shell) -> None:
    """--log-format json writes one object a line."""
    write_texts(shell, 5)
    ended = shell.type("run", "in.jsonl", "-o", "out", "--log-format", "json", "--json")
    assert ended.code == 0
    for line in ended.err.splitlines():
        assert {"at", "level", "logger", "message"} <= json.loads(line).keys()


def test_doctor_finds_a_journal_that_cannot_be_written(shell) -> None:
    """Each thing has its line; one that is amiss makes it exit 1."""
    well = shell.type("doctor", "--json")
    assert well.code == 0, well.out
    assert {one["what"] for one in well.json["findings"]} == {
        *("python", "engine", "processor", "model", "journal", "disk")
    }
    shell.write("file", "")
    ill = shell.type("doctor", "--journal", "file/journal.db", "--json")
    assert ill.code == 1
    assert [one["what"] for one in ill.json["findings"] if not one["well"]] == ["journal"]


def test_search_refuses_another_space(shell) -> None:
    """Vectors of other weights are not compared with the query's."""
    write_texts(shell, 5)
    shell.type("run", "in.jsonl", "-o", "out")
    manifest = shell.folder / "out" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["space"]["weights_sha256"] = "0" * 64
    manifest.write_text(json.dumps(values))
    ended = shell.type("search", "out", "text 3")
    assert ended.code == 2
    assert "weights_sha256" in ended.err


def test_search_names_what_is_no_output(shell) -> None:
    """A folder without a manifest."""
    ended = shell.type("search", ".", "text 3")
    assert ended.code == 2
    assert "manifest.json" in ended.err


def test_the_demo_embeds_and_searches_and_does_it_once(shell) -> None:
    """Thousands of docstrings, three searches with scores; again, it only searches."""
    first = shell.type("demo", "--json")
    assert first.code == 0, first.err
    assert first.json["written"] == first.json["rows"] > 2000
    assert [len(search["hits"]) for search in first.json["searches"]] == [3, 3, 3]
    again = shell.type("demo", "--json").json
    assert (again["id"], again["finished_at"]) == (first.json["id"], first.json["finished_at"])
    shown = shell.type("demo")
    assert "read a file line by line" in shown.out
    assert "embatch search embatch-demo/vectors" in shown.out
    assert shell.type("verify", "embatch-demo/vectors").code == 0


def test_a_closed_pipe_is_no_error(shell) -> None:
    """`embatch … | head` ends without a traceback."""
    write_texts(shell, 5)
    process = shell.start("runs", "--json")
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in errors
