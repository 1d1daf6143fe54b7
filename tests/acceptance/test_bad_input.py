"""Bad input: the exit code, one clear line that helps, and nothing half-written."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Refused = Callable[..., str]
ROWS = [{"id": f"k{n}", "text": f"text {n}"} for n in range(10)]


def run(*names: str) -> tuple[str, ...]:
    return ("run", *names, "-o", "out")


def test_a_missing_file_is_named(refused: Refused) -> None:
    """No such file: a usage error that names it."""
    assert "no file nowhere.jsonl" in refused(*run("nowhere.jsonl"), code=2)


def test_a_glob_without_a_match_is_named(refused: Refused) -> None:
    """A pattern that matches nothing is a usage error."""
    assert "no file matches" in refused(*run("*.parquet"), code=2)


def test_an_unknown_format_is_refused_with_the_known_ones(shell, refused: Refused) -> None:
    """A file of an unknown kind: the message lists the kinds that can be read."""
    shell.write("texts.docx", "x")
    assert ".jsonl" in refused(*run("texts.docx"), code=2)


@pytest.mark.parametrize("option", ["--text", "--key", "--keep"])
def test_a_missing_column_lists_the_columns(shell, refused: Refused, option: str) -> None:
    """No such column: a usage error that lists those there are."""
    shell.write_rows("in.jsonl", ROWS)
    line = refused(*run("in.jsonl"), option, "body", code=2)
    assert "'body'" in line
    assert "id, text" in line


def test_an_ambiguous_text_column_lists_the_columns(shell, refused: Refused) -> None:
    """Several string columns and none called text: the message says how to choose."""
    shell.write_rows("in.jsonl", [{"title": "a", "body": "b"}])
    line = refused(*run("in.jsonl"), code=2)
    assert "--text" in line
    assert "title, body" in line


@pytest.mark.parametrize(("name", "content"), [("in.jsonl", ""), ("in.csv", "id,text\n")])
def test_no_rows_are_an_error(shell, refused: Refused, name: str, content: str) -> None:
    """A file without rows is broken data, not a run of nothing."""
    shell.write(name, content)
    assert "no rows" in refused(*run(name), code=1)


def test_empty_texts_fail_as_rows(shell) -> None:
    """Null and "" are failed rows with a reason; the others get their vectors; exit 3."""
    shell.write_rows("in.jsonl", [*ROWS, {"id": "null", "text": None}, {"id": "none", "text": ""}])
    ended = shell.type(*run("in.jsonl"), "--key", "id", "--json")
    assert ended.code == 3
    assert (ended.json["written"], ended.json["failed"], ended.json["exit_code"]) == (10, 2, 3)
    found = shell.type("failures", ended.json["id"], "--json").json
    assert found["counts"] == {"empty_text": 2}
    assert [failure["key"] for failure in found["failures"]] == ["null", "none"]
    assert len((shell.folder / "out" / "failures.jsonl").read_text().splitlines()) == 2
    assert shell.type("verify", "out").code == 0


def test_a_dataset_of_empty_texts_alone_completes(shell) -> None:
    """Not one text: every row fails, and the run still ends."""
    shell.write_rows("in.jsonl", [{"text": ""}, {"text": None}])
    ended = shell.type(*run("in.jsonl"), "--json")
    assert (ended.code, ended.json["failed"]) == (3, 2)


def test_duplicate_keys_are_refused_with_both_rows(shell, refused: Refused) -> None:
    """A key that stands twice is a usage error, before any work, naming the key and both rows."""
    shell.write_rows("in.jsonl", [*ROWS, {"id": "k3", "text": "another"}])
    line = refused(*run("in.jsonl"), "--key", "id", code=2)
    assert "'k3'" in line
    assert "row 3" in line
    assert "row 10" in line


def test_a_key_with_brackets_is_printed_as_it_is(shell, refused: Refused) -> None:
    """Keys may look like markup; the message shows them unchanged."""
    shell.write_rows("in.jsonl", [{"id": "[bold]k[/bold]", "text": "a"}] * 2)
    assert "'[bold]k[/bold]'" in refused(*run("in.jsonl"), "--key", "id", code=2)


def test_mended_data_take_the_same_output(shell, refused: Refused) -> None:
    """After a refusal the same command takes the mended file: nothing stands in its way."""
    shell.write_rows("in.jsonl", [*ROWS, ROWS[0]])
    refused(*run("in.jsonl"), "--key", "id", code=2)
    shell.write_rows("in.jsonl", ROWS)
    assert shell.type(*run("in.jsonl"), "--key", "id").code == 0


def test_bytes_that_are_not_utf8_are_told_with_their_place(shell, refused: Refused) -> None:
    """A file in another encoding: the message names the file and the line, not the text."""
    shell.write("in.txt", b"a good line\nsecret caf\xe9\n")
    line = refused(*run("in.txt"), code=1)
    assert "in.txt" in line
    assert "UTF-8" in line
    assert "secret" not in line


def test_a_broken_json_line_is_told_with_its_number(shell, refused: Refused) -> None:
    """Broken JSON: the line's number, without its content."""
    shell.write("in.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "secret\n')
    line = refused(*run("in.jsonl"), code=1)
    assert re.search(r"line 3\b", line)
    assert "secret" not in line


def test_a_broken_line_on_stdin_leaves_nothing(refused: Refused) -> None:
    """Standard input is spooled first; when it is refused the spool goes."""
    assert "line 2" in refused(*run("-"), code=1, stdin='{"text": "a"}\n{"text":\n')


def test_a_broken_parquet_file_is_named(shell, refused: Refused) -> None:
    """A file that is no Parquet inside."""
    shell.write("in.parquet", b"PAR1 this is not what it says PAR1")
    assert "in.parquet" in refused(*run("in.parquet"), code=1)


def test_a_parquet_file_broken_in_its_middle_is_named(shell, refused: Refused) -> None:
    """The footer is whole, a page is not: found before anything is sent."""
    path = shell.folder / "in.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(50_000)]}), path)
    content = bytearray(path.read_bytes())
    content[1000:60_000] = b"\xff" * 59_000
    path.write_bytes(content)
    assert "in.parquet" in refused(*run("in.parquet"), code=1)


def test_a_model_folder_without_files_is_a_usage_error(shell, refused: Refused) -> None:
    """A folder that is no model: the message says what it lacks."""
    shell.write_rows("in.jsonl", ROWS)
    (shell.folder / "model").mkdir()
    assert "config.json" in refused(*run("in.jsonl"), "--model", "./model", code=2, real=True)


def test_an_unknown_model_tells_the_ways_to_get_one(shell, refused: Refused) -> None:
    """A model that is nowhere: the message gives the commands that bring it."""
    shell.write_rows("in.jsonl", ROWS)
    line = refused(*run("in.jsonl"), "--model", "no-such-model", code=2, real=True)
    assert "--model ./folder" in line
    assert "hf download" in line


def test_an_unknown_provider_lists_the_known_ones(shell, refused: Refused) -> None:
    """A provider that does not exist."""
    shell.write_rows("in.jsonl", ROWS)
    assert "local" in refused(*run("in.jsonl"), "--provider", "nobody", code=2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--key", "id"), "key column"),
        (("--model", "other"), "another space"),
        (("--dims", "8"), "dims"),
    ],
)
def test_the_output_of_another_run_is_refused(shell, arguments: tuple[str, ...], word: str) -> None:
    """An output that belongs to another run or space: refused, saying in what; it stays sound."""
    shell.write_rows("in.jsonl", ROWS)
    assert shell.type(*run("in.jsonl")).code == 0
    before = sorted(path.name for path in (shell.folder / "out").iterdir())
    ended = shell.type(*run("in.jsonl"), *arguments)
    assert ended.code == 2
    assert word in ended.err
    assert sorted(path.name for path in (shell.folder / "out").iterdir()) == before
    assert shell.type("verify", "out").code == 0


def test_a_changed_input_is_refused_by_name(shell) -> None:
    """The same output with another content of the input is refused, naming the file."""
    shell.write_rows("in.jsonl", ROWS)
    assert shell.type(*run("in.jsonl")).code == 0
    shell.write_rows("in.jsonl", ROWS[:5])
    ended = shell.type(*run("in.jsonl"))
    assert ended.code == 2
    assert "in.jsonl" in ended.err
    assert "--reuse" in ended.err


def test_a_folder_of_foreign_parts_is_refused(shell) -> None:
    """Parts without a manifest are somebody else's: left alone."""
    shell.write_rows("in.jsonl", ROWS)
    foreign = shell.write("out/part-00000.parquet", b"mine")
    ended = shell.type(*run("in.jsonl"))
    assert ended.code == 2
    assert "part-00000.parquet" in ended.err
    assert [path.name for path in foreign.parent.iterdir()] == [foreign.name]


def test_a_file_as_output_folder_is_refused(shell) -> None:
    """The output's name belongs to a file of another kind."""
    shell.write_rows("in.jsonl", ROWS)
    shell.write("out", "a file")
    ended = shell.type(*run("in.jsonl"))
    assert ended.code == 2
    assert ".parquet or .npy" in ended.err
    assert (shell.folder / "out").read_text() == "a file"


MS_REMOUNT = 32
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(folder: Path, flags: int, size_kb: int) -> int:
    options = f"size={size_kb}k".encode()
    return int(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if _mount(folder, 0, 256) != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    _libc.umount(os.fsencode(folder))


def test_a_full_disk_fails_and_resumes(shell, small_disk: Path) -> None:
    """The disk fills up: exit 1 with what to do; with space again, resume finishes soundly."""
    rows = 6000
    shell.write_rows("in.jsonl", [{"text": f"text number {n}"} for n in range(rows)])
    out = str(small_disk / "out")
    ended = shell.type("run", "in.jsonl", "-o", out, "--max-batch-items", "500", "--json")
    assert ended.code == 1, ended.err
    assert "disk is full" in ended.json["error"]
    assert _mount(small_disk, MS_REMOUNT, 32_000) == 0
    resumed = shell.type("resume", ended.json["id"], "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["written"] == rows
    verdict = shell.type("verify", out, "--json").json
    assert (verdict["sound"], verdict["rows"]) == (True, rows)
