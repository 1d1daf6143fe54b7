"""An output is a folder, or one file with a folder beside it."""

import pytest

import embatch
from embatch.datasets.output import OutputPaths, read_failures, write_failures
from embatch.environment import Environment
from embatch.errors import InvalidRequestError


def test_a_folder_holds_everything(tmp_path, monkeypatch):
    """A relative path becomes absolute."""
    monkeypatch.chdir(tmp_path)
    paths = OutputPaths.for_out("vectors")
    assert paths.out == paths.parts == tmp_path / "vectors"
    assert paths.manifest == tmp_path / "vectors" / "manifest.json"
    assert paths.failures == tmp_path / "vectors" / "failures.jsonl"
    assert paths.work == tmp_path / "vectors" / ".work"
    assert paths.single_file is None
    assert paths.keys_file is None


@pytest.mark.parametrize("ending", [".parquet", ".npy"])
def test_one_file_has_a_folder_beside_it(tmp_path, ending):
    """x.parquet and x.npy keep their manifest, failures and work in x.embatch/."""
    paths = OutputPaths.for_out(str(tmp_path / f"x{ending}"))
    assert paths.single_file == paths.out == tmp_path / f"x{ending}"
    assert paths.parts == tmp_path / "x.embatch"
    assert paths.manifest == tmp_path / "x.embatch" / "manifest.json"
    assert paths.failures.parent == paths.work.parent == tmp_path / "x.embatch"
    expected = tmp_path / "x.keys.parquet" if ending == ".npy" else None
    assert paths.keys_file == expected


def test_a_name_of_the_other_kind_is_refused(tmp_path):
    """A folder called x.npy, a file called x."""
    (tmp_path / "x.npy").mkdir()
    (tmp_path / "x").touch()
    for name in ("x.npy", "x"):
        with pytest.raises(InvalidRequestError, match=name):
            OutputPaths.for_out(str(tmp_path / name))


def test_failures_come_back_as_they_were_written(tmp_path):
    """A line each, whole or not at all."""
    failures = [
        {"key": "k\n1", "row": 1, "code": "empty_text", "message": "m", "attempts": 0},
        {"key": "é", "row": 2, "code": "internal", "message": "m", "attempts": 3},
    ]
    path = tmp_path / "failures.jsonl"
    assert write_failures(path, iter(failures)) == 2
    assert list(read_failures(path)) == failures
    assert len(path.read_bytes().splitlines()) == 2

    def broken():
        yield failures[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_failures(path, broken())
    assert list(read_failures(path)) == failures
    assert [p.name for p in tmp_path.iterdir()] == ["failures.jsonl"]
    assert list(read_failures(tmp_path / "none.jsonl")) == []


def test_a_refused_call_ends_with_its_own_error(tmp_path, monkeypatch):
    """Whatever befalls the cleaning up after it, what was opened is closed."""
    closed, close = [], Environment.close

    def closing(environment):
        closed.append(True)
        close(environment)

    monkeypatch.setattr(Environment, "close", closing)
    with pytest.raises(InvalidRequestError, match="looked at"):
        embatch.submit(["a"], tmp_path / ("x" * 300), journal=f"sqlite:///{tmp_path}/j.db")
    assert closed == [True]


def test_a_name_that_no_disk_takes_is_refused_in_words(tmp_path):
    """As usage, and cut where it is longer than a sentence."""
    with pytest.raises(InvalidRequestError, match="looked at: File name too long") as told:
        OutputPaths.for_out(str(tmp_path / ("x" * 3_000)))
    assert len(str(told.value)) < 300
