"""Checking an output finds what is wrong with it, and nothing in a sound one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.api import submit
from embatch.config import Settings, journal_url
from embatch.datasets.output import OutputPaths
from embatch.environment import Environment
from embatch.errors import NotFoundError
from embatch.hooks import Hooks
from embatch.runs.check import Verdict, check_output
from embatch.testing.engine import FakeEngine

ROWS = 40


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Environment]:
    settings = Settings(home=tmp_path / "home", journal=journal_url(str(tmp_path / "j.db")))
    hooks = Hooks(open_engine=lambda _model, **_: FakeEngine(dims=8))
    with Environment.open(settings, hooks=hooks) as environment:
        yield environment


@pytest.fixture
def written(world: Environment, tmp_path: Path) -> Callable[[str], OutputPaths]:
    """Writes an output of 40 rows, two of them empty, in batches of 10."""

    def write(name: str) -> OutputPaths:
        texts = [f"text {n}" for n in range(ROWS - 2)] + ["", None]
        submit(texts, tmp_path / name, environment=world, max_batch_items=10).wait(60)
        return OutputPaths.for_out(str(tmp_path / name))

    return write


@pytest.fixture
def verdict(world: Environment) -> Callable[[OutputPaths], Verdict]:
    return lambda paths: check_output(paths, world.journal)


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.npy"])
def test_a_sound_output_is_sound(written, verdict, name: str) -> None:
    """Every form of output passes, failed rows counted."""
    found = verdict(written(name))
    assert found.problems == ()
    assert (found.sound, found.finished, found.rows, found.failed) == (True, True, ROWS - 2, 2)


def test_no_output_is_told(verdict, tmp_path: Path) -> None:
    """A folder without a manifest is no output."""
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        verdict(OutputPaths.for_out(str(tmp_path)))


def test_lost_failures_are_noticed(written, verdict) -> None:
    """failures.jsonl is held against the manifest and the journal."""
    paths = written("out")
    paths.failures.write_bytes(paths.failures.read_bytes().splitlines(keepends=True)[0])
    text = " ".join(verdict(paths).problems)
    assert "the manifest counts 2" in text
    assert "the journal counts 2" in text


def test_counts_that_do_not_add_up_are_noticed(written, verdict) -> None:
    """Written and failed rows must be the rows of the input."""
    paths = written("out")
    manifest = orjson.loads(paths.manifest.read_bytes())
    manifest["counts"]["rows"] += 1
    paths.manifest.write_bytes(orjson.dumps(manifest))
    assert "are not the 41 of the input" in " ".join(verdict(paths).problems)


def test_a_missing_single_file_is_noticed(written, verdict) -> None:
    """The one file of the output is gone."""
    paths = written("out.parquet")
    paths.single_file.unlink()
    assert "out.parquet: the file is missing" in verdict(paths).problems


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "is not finite"), (5.0, "is not of length 1")]
)
def test_a_broken_matrix_is_noticed(written, verdict, value: float, words: str) -> None:
    """A vector of an .npy file that is no unit vector, by its place."""
    paths = written("out.npy")
    matrix = np.load(paths.single_file)
    matrix[7, 3] = value
    np.save(paths.single_file, matrix)
    assert f"vector 7 {words}" in verdict(paths).problems[0]


def test_a_matrix_of_another_shape_is_noticed(written, verdict) -> None:
    """Dims are those of the space, vectors as many as keys."""
    paths = written("out.npy")
    matrix = np.load(paths.single_file)
    np.save(paths.single_file, matrix[:, :4])
    assert "not float32 [n, 8]" in verdict(paths).problems[0]
    np.save(paths.single_file, matrix[:30])
    assert "38 keys for 30 vectors" in " ".join(verdict(paths).problems)


def test_a_repeated_key_beside_a_matrix_is_noticed(written, verdict) -> None:
    """Keys are unique in the keys file too."""
    paths = written("out.npy")
    table = pq.read_table(paths.keys_file)
    keys = table["key"].to_pylist()
    keys[5] = keys[4]
    pq.write_table(table.set_column(0, "key", pa.array(keys)), paths.keys_file)
    assert "rows 4 and 5 bear the same key" in " ".join(verdict(paths).problems)


def test_an_unfinished_output_is_held_against_the_journal(world, verdict, tmp_path: Path) -> None:
    """While a run goes on, what the journal holds published must stand."""
    run = submit(
        [f"text {n}" for n in range(ROWS)], tmp_path / "out", environment=world, max_batch_items=5
    )
    run.wait(60, stop=lambda: run.status().written > 0)
    paths = OutputPaths.for_out(str(tmp_path / "out"))
    found = verdict(paths)
    assert (found.sound, found.finished) == (True, False)
    lost = min(paths.parts.glob("part-*.parquet"))
    lost.unlink()
    assert any(lost.name in problem and "missing" in problem for problem in verdict(paths).problems)
