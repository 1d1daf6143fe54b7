"""Runs from Python over the whole path, with an engine whose vectors tell texts apart."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch import api
from embatch.config import Settings
from embatch.environment import Environment
from embatch.errors import DuplicateKeyError, InputError, InvalidRequestError, SpaceMismatchError
from embatch.hooks import Hooks
from embatch.runs.status import RunStatus
from embatch.testing.engine import FakeEngine
from embatch.types.state import RunState

DIMS = 8
ENGINE = FakeEngine(dims=DIMS)
World = Callable[..., Environment]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Environments over one home; `poison` and `max_tokens` shape the engine."""
    opened: list[Environment] = []

    def open_world(home: str = "home", **engine: Any) -> Environment:
        folder = tmp_path / home
        settings = Settings(home=folder, journal=f"sqlite:///{folder / 'journal.db'}")
        hooks = Hooks(open_engine=lambda _model, **_: FakeEngine(dims=DIMS, **engine))
        opened.append(Environment.open(settings, hooks=hooks))
        return opened[-1]

    yield open_world
    for environment in opened:
        environment.close()


def embed(environment: Environment, data: Any, out: Path, **options: Any) -> api.Run:
    """Submits and works to the end."""
    run = api.submit(data, out, environment=environment, **options)
    run.wait(60)
    return run


def rows_of(out: Path) -> dict[str, np.ndarray]:
    """Vectors by key, from whatever files the output has."""
    files = [out] if out.is_file() else sorted(out.glob("part-*.parquet"))
    found: dict[str, np.ndarray] = {}
    for path in files:
        table = pq.read_table(path)
        matrix = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
        for key, vector in zip(table["key"].to_pylist(), matrix, strict=True):
            assert key not in found
            found[key] = vector
    return found


def assert_right(found: dict[str, np.ndarray], texts: dict[str, str]) -> None:
    """Exactly these keys, each with the vector of its own text, to the bit."""
    assert found.keys() == texts.keys()
    truth = ENGINE.expected(list(texts.values()))
    for key, vector in zip(texts, truth, strict=True):
        assert np.array_equal(found[key], vector), key


def pairs(count: int, start: int = 0) -> dict[str, str]:
    return {f"k{n}": f"text {n}" for n in range(start, start + count)}


def test_a_run_embeds_every_text_and_says_so(world: World, tmp_path: Path) -> None:
    """Keys, rows, kept columns, manifest and status agree."""
    table = pa.table({"id": [10, 11, 12], "text": ["a", "b", "a"], "colour": ["red", None, "blue"]})
    run = embed(world(), table, tmp_path / "out", key="id", keep=["colour", "text"])
    status = run.status()
    assert status.state is RunState.COMPLETED
    assert (status.rows, status.written, status.copies, status.failed) == (3, 3, 1, 0)
    assert_right(rows_of(tmp_path / "out"), {"10": "a", "11": "b", "12": "a"})
    rows = [row for batch, _ in run.read() for row in batch.to_pylist()]
    assert {row["key"]: (row["row"], row["colour"], row["text"]) for row in rows} == {
        "10": (0, "red", "a"),
        "11": (1, None, "b"),
        "12": (2, "blue", "a"),
    }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["run_id"] == run.id
    assert manifest["counts"]["written"] == 3
    assert sum(part["rows"] for part in manifest["parts"]) == 3
    assert not (tmp_path / "out" / ".work").exists()


def test_equal_texts_are_embedded_once(world: World, tmp_path: Path) -> None:
    """Ten thousand rows of ten texts cost ten."""
    engines: list[FakeEngine] = []

    def counted(_model: str | None, **_: Any) -> FakeEngine:
        engines.append(FakeEngine(dims=DIMS))
        return engines[-1]

    environment = world()
    counting = Environment(environment.settings, environment.journal, Hooks(open_engine=counted))
    texts = {f"k{n}": f"text {n % 10}" for n in range(10_000)}
    run = embed(counting, texts.items(), tmp_path / "out", max_batch_items=512)
    assert run.status().copies == 9_990
    assert sum(engine.texts_embedded for engine in engines) == 10
    assert_right(rows_of(tmp_path / "out"), texts)


@pytest.mark.parametrize("name", ["all.parquet", "all.npy"])
def test_one_file_holds_the_rows_in_order(world: World, tmp_path: Path, name: str) -> None:
    """Sorted by row, without the failed one, and no parts are left beside it."""
    texts = [f"text {n % 30}" for n in range(50)]
    texts[20] = ""
    run = embed(world(), texts, tmp_path / name, max_batch_items=7)
    assert run.status().state is RunState.COMPLETED_WITH_FAILURES
    kept = [row for row in range(50) if row != 20]
    truth = ENGINE.expected([texts[row] for row in kept])
    if name.endswith(".npy"):
        assert np.array_equal(np.load(tmp_path / name), truth)
        keys = pq.read_table(tmp_path / "all.keys.parquet")
        assert keys["row"].to_pylist() == kept
    else:
        table = pq.read_table(tmp_path / name)
        assert table["row"].to_pylist() == kept
        assert_right(rows_of(tmp_path / name), {str(row): texts[row] for row in kept})
    (failure,) = (tmp_path / "all.embatch" / "failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["code"] == "empty_text"


@pytest.mark.parametrize("name", ["all.parquet", "all.npy"])
def test_a_file_of_no_rows_is_written_when_all_fail(
    world: World, tmp_path: Path, name: str
) -> None:
    """A dataset of empty texts ends with an empty file and its failures, not with a crash."""
    table = pa.table({"text": ["", None], "size": [1, 2]})
    status = embed(world(), table, tmp_path / name, keep=["size"]).status()
    assert (status.state, status.failed) == (RunState.COMPLETED_WITH_FAILURES, 2)
    if name.endswith(".npy"):
        assert np.load(tmp_path / name).shape == (0, DIMS)
    else:
        found = pq.read_table(tmp_path / name)
        assert found.num_rows == 0
        assert found.schema.field("size").type == pa.int64()


def test_the_same_output_again_does_nothing_more(world: World, tmp_path: Path) -> None:
    """A finished run is found finished."""
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\n")
    environment = world()
    first = embed(environment, source, tmp_path / "out")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    second = embed(environment, source, tmp_path / "out")
    assert second.id == first.id
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")} == parts


def test_an_output_of_another_run_is_refused(world: World, tmp_path: Path) -> None:
    """Other columns, a changed source or another space: each refused by name."""
    source = tmp_path / "texts.jsonl"
    source.write_text('{"a": "x", "text": "one"}\n')
    environment = world()
    embed(environment, source, tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="the key column: none here and 'a' there"):
        api.submit(source, tmp_path / "out", key="a", environment=environment)
    with pytest.raises(SpaceMismatchError, match="dims is 8 here and 4 there"):
        api.submit(source, tmp_path / "out", dims=4, environment=environment)
    source.write_text('{"a": "x", "text": "one more"}\n')
    with pytest.raises(InvalidRequestError, match="--reuse"):
        api.submit(source, tmp_path / "out", environment=environment)


def test_foreign_parts_are_not_written_over(world: World, tmp_path: Path) -> None:
    """An output folder that holds someone's parts is refused."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"precious")
    with pytest.raises(InvalidRequestError, match=r"part-00000\.parquet and no manifest"):
        api.submit(["a"], tmp_path / "out", environment=world())
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == b"precious"


def test_reuse_embeds_only_what_the_earlier_output_lacks(world: World, tmp_path: Path) -> None:
    """Vectors of equal texts come over, whatever their keys; the space must be the same."""
    environment = world()
    embed(environment, pairs(100).items(), tmp_path / "old", max_batch_items=16)
    new = {f"n{n}": f"text {n}" for n in range(50, 150)} | {"again": "text 60"}
    run = embed(
        environment, new.items(), tmp_path / "new", reuse=tmp_path / "old", max_batch_items=16
    )
    status = run.status()
    assert (status.reused, status.written, status.copies) == (51, 101, 0)
    assert_right(rows_of(tmp_path / "new"), new)
    with pytest.raises(SpaceMismatchError, match="cannot be reused"):
        api.submit(["a"], tmp_path / "x", reuse=tmp_path / "old", dims=4, environment=environment)


def test_reuse_takes_from_a_single_file_too(world: World, tmp_path: Path) -> None:
    """An output in one Parquet file serves as well as a folder."""
    environment = world()
    embed(environment, pairs(40).items(), tmp_path / "old.parquet", max_batch_items=16)
    new = pairs(60, start=20)
    run = embed(environment, new.items(), tmp_path / "new", reuse=tmp_path / "old.parquet")
    assert run.status().reused == 20
    assert_right(rows_of(tmp_path / "new"), new)


def test_an_output_whose_journal_is_gone_is_adopted(world: World, tmp_path: Path) -> None:
    """Sound parts count, a broken one is set aside, and the rest is embedded."""
    source = tmp_path / "texts.parquet"
    texts = {f"k{n}": f"text {n % 45}" for n in range(60)}
    pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), source)
    first = embed(world(), source, tmp_path / "out", key="id", max_batch_items=10)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-50])
    second = embed(world("elsewhere"), source, tmp_path / "out", key="id", max_batch_items=10)
    assert second.id == first.id
    assert second.status().state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), texts)
    assert [path.name for path in (tmp_path / "out").glob(".rejected-*")]


def test_poisoned_rows_fail_alone_and_can_be_retried(world: World, tmp_path: Path) -> None:
    """Their texts are kept; once the cause is mended, `retry` completes the output."""
    texts = pairs(30) | {"bad": "poison pill", "worse": "poison pill", "last": "poisonous"}
    run = embed(world(poison="poison"), texts.items(), tmp_path / "out", max_batch_items=8)
    failed = {failure.key: failure for failure in run.failures()}
    assert failed.keys() == {"bad", "worse", "last"}
    assert all(failure.kept for failure in failed.values())
    assert not any("pill" in failure.message for failure in failed.values())
    assert_right(rows_of(tmp_path / "out"), pairs(30))
    mended = api.Run(world(), run.id)
    assert mended.retry() == 3
    assert mended.wait(60).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), texts)
    assert (tmp_path / "out" / "failures.jsonl").read_text() == ""
    assert not (tmp_path / "out" / ".work").exists()


def test_a_retry_that_fails_again_keeps_the_failure(world: World, tmp_path: Path) -> None:
    """Nothing is lost when the cause is still there."""
    environment = world(poison="poison")
    run = embed(environment, ["fine", "poison"], tmp_path / "out")
    assert run.retry() == 1
    assert run.wait(60).failed == 1
    assert [failure.key for failure in run.failures()] == ["1"]
    assert run.retry() == 1


def test_empty_texts_are_not_retried(world: World, tmp_path: Path) -> None:
    """There is nothing to send."""
    run = embed(world(), ["a", "", None], tmp_path / "out")
    assert [(f.row, f.code, f.kept) for f in run.failures()] == [
        (1, "empty_text", False),
        (2, "empty_text", False),
    ]
    assert run.retry() == 0


@pytest.mark.parametrize(("too_long", "failed"), [("send", 0), ("cut", 0), ("fail", 1)])
def test_texts_over_the_limit_are_counted_or_refused(
    world: World, tmp_path: Path, too_long: Any, failed: int
) -> None:
    """Never cut in silence."""
    texts = ["short", "a text of rather more than four words"]
    run = embed(world(max_tokens=6), texts, tmp_path / "out", too_long=too_long)
    status = run.status()
    assert (status.failed, status.truncated) == (failed, 1 - failed)
    assert [failure.code for failure in run.failures()] == ["too_long"] * failed


def test_a_cancelled_run_keeps_what_is_written_and_resumes(world: World, tmp_path: Path) -> None:
    """Cancelling ends the work at once; resuming completes it."""
    environment = world(delay_s=0.02)
    texts = pairs(200)
    run = api.submit(texts.items(), tmp_path / "out", max_batch_items=10, environment=environment)

    def some(status: RunStatus) -> None:
        nonlocal enough
        enough = status.written >= 20

    enough = False
    run.wait(60, on_progress=some, stop=lambda: enough)
    status = run.cancel()
    assert status.state is RunState.CANCELLED
    assert 20 <= status.written < 200
    assert run.cancel().state is RunState.CANCELLED
    assert run.resume().wait(60).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), texts)


def test_waiting_ends_with_its_timeout_and_the_run_goes_on(world: World, tmp_path: Path) -> None:
    """`timeout` stops the waiting, never the run."""
    environment = world(delay_s=0.05)
    texts = pairs(300)
    run = api.submit(texts.items(), tmp_path / "out", max_batch_items=4, environment=environment)
    assert run.wait(0.5).state in (RunState.PLANNING, RunState.RUNNING)
    assert run.wait(240).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), texts)


def test_forgetting_removes_kept_texts_and_leaves_the_output(world: World, tmp_path: Path) -> None:
    """After `forget` no text of the user is anywhere in the output's folder."""
    environment = world(poison="poison")
    run = embed(environment, ["fine", "poison secret"], tmp_path / "out")
    work = tmp_path / "out" / ".work"
    assert any(b"poison secret" in path.read_bytes() for path in work.rglob("*.arrow"))
    run.forget()
    assert not work.exists()
    assert environment.journal.list_runs() == []
    assert len(rows_of(tmp_path / "out")) == 1


def test_forgetting_a_cancelled_run_leaves_no_text_anywhere(world: World, tmp_path: Path) -> None:
    """Not in the output's folder, and not with the local service."""
    environment = world(delay_s=0.05)
    texts = {f"k{n}": f"confidential {n}" for n in range(100)}
    run = api.submit(texts.items(), tmp_path / "out", max_batch_items=10, environment=environment)
    run.wait(0.5)
    run.cancel()
    run.forget()
    left = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b"confidential" in path.read_bytes()
    ]
    assert left == []


def test_batch_sizes_may_change_between_starts(world: World, tmp_path: Path) -> None:
    """Copies that were cut into batches before the change are neither lost nor doubled."""
    texts = {f"k{n}": f"text {n % 20}" for n in range(80)}
    passed = []

    def stop_early(name: str) -> None:
        passed.append(name)
        if name == "copies.journaled" and passed.count(name) == 2:
            raise OSError("pulled the plug")

    environment = world()
    breaking = Environment(
        environment.settings,
        environment.journal,
        Hooks(open_engine=environment.hooks.open_engine, checkpoint=stop_early),
    )
    data = pa.table({"id": list(texts), "text": list(texts.values())})
    out = tmp_path / "out"
    run = api.enter(data, out, key="id", max_batch_items=8, environment=breaking)
    assert run.wait(60).state is RunState.FAILED
    for size in (100, 3):
        run = api.enter(data, out, key="id", max_batch_items=size, environment=environment)
    assert run.wait(240).state is RunState.COMPLETED
    assert_right(rows_of(out), texts)


def test_another_reused_output_is_another_run(world: World, tmp_path: Path) -> None:
    """Rows of one earlier output are never looked up in another."""
    environment = world()
    embed(environment, pairs(20).items(), tmp_path / "one")
    embed(environment, pairs(20, start=10).items(), tmp_path / "two")
    data = pa.table({"text": ["text 15"]})
    api.enter(data, tmp_path / "out", reuse=tmp_path / "one", environment=environment)
    with pytest.raises(InvalidRequestError, match="the reused output"):
        api.enter(data, tmp_path / "out", reuse=tmp_path / "two", environment=environment)


def test_a_reused_output_that_was_made_anew_is_noticed(world: World, tmp_path: Path) -> None:
    """A vector is taken over only while the text beside it is the one that was planned."""
    environment = world()
    embed(environment, pairs(20).items(), tmp_path / "old")
    run = api.submit(
        [*pairs(20).values()], tmp_path / "new", reuse=tmp_path / "old", environment=environment
    )
    for path in [*(tmp_path / "old").glob("part-*"), tmp_path / "old" / "manifest.json"]:
        path.unlink()
    embed(environment, pairs(20, start=100).items(), tmp_path / "old")
    status = run.wait(60)
    assert status.state is RunState.FAILED
    assert "other texts" in str(status.error)
    assert not list((tmp_path / "new").glob("part-*"))


def test_a_forgotten_output_starts_over_with_right_vectors(world: World, tmp_path: Path) -> None:
    """What the local service still holds under old labels is never taken for the new run's."""
    environment = world(delay_s=0.3)
    data = pa.table({"text": list(pairs(60).values())})
    run = api.submit(data, tmp_path / "out", max_batch_items=8, environment=environment)
    run.wait(0.6)
    run.cancel()
    run.forget()
    again = embed(environment, data, tmp_path / "out", max_batch_items=7)
    assert again.status().state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), {str(n): f"text {n}" for n in range(60)})


def test_an_output_at_work_under_another_journal_is_refused(world: World, tmp_path: Path) -> None:
    """Two homes on one output: the second says so and does not touch it."""
    data = pa.table({"text": list(pairs(60).values())})
    first = world(delay_s=0.05)
    run = api.submit(data, tmp_path / "out", max_batch_items=8, environment=first)
    first.context(first.journal.get_run(run.id))
    with pytest.raises(InvalidRequestError, match="another process with another journal"):
        api.submit(data, tmp_path / "out", environment=world("elsewhere"))
    assert run.wait(240).state is RunState.COMPLETED
    taken_over = api.submit(data, tmp_path / "out", environment=world("elsewhere"))
    assert taken_over.wait(60).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), {str(n): f"text {n}" for n in range(60)})


def test_a_worker_that_cannot_open_a_run_leaves_it_alone(world: World, tmp_path: Path) -> None:
    """A model that this process lacks says nothing about the run."""
    from embatch.errors import ConfigError
    from embatch.execution.threads import ThreadExecutor

    environment = world()
    run = api.submit(pairs(9).items(), tmp_path / "out", environment=environment)

    def refuse(_run: object) -> Any:
        raise ConfigError("no model here")

    looks = iter(range(30))
    ThreadExecutor(environment.journal, refuse).work(until=lambda: next(looks, 99) > 10)
    assert run.status().state is RunState.RUNNING
    assert run.wait(240).state is RunState.COMPLETED


def test_duplicate_keys_are_refused_before_any_work(world: World, tmp_path: Path) -> None:
    """The error names the key and both rows; nothing was embedded."""
    environment = world()
    with pytest.raises(DuplicateKeyError, match=r"'a'.*row.*0.*2"):
        embed(environment, [("a", "x"), ("b", "y"), ("a", "z")], tmp_path / "out")
    assert environment.journal.list_runs() == []
    embed(environment, [("a", "x"), ("b", "y"), ("c", "z")], tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 3


def test_an_input_that_changes_while_it_is_planned_is_refused(world: World, tmp_path: Path) -> None:
    """What was planned is what is embedded."""
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\n")
    environment = world()
    run = api.enter(source, tmp_path / "out", environment=environment)
    source.write_text("one\ntwo\nthree\n")
    status = run.wait(60)
    assert status.state is RunState.FAILED
    assert "texts.txt changed" in str(status.error)


def test_a_submitted_run_needs_its_source_no_more(world: World, tmp_path: Path) -> None:
    """What was staged is what is embedded, whatever happens to the file."""
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\none\n")
    run = api.submit(source, tmp_path / "out", environment=world())
    source.unlink()
    assert run.wait(240).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "out"), {"0": "one", "1": "two", "2": "one"})


def test_a_run_is_looked_up_from_elsewhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is all that a web application keeps."""
    environment = world()
    run = api.submit(
        ["a"], tmp_path / "out", name="nightly", tags={"t": "1"}, environment=environment
    )
    url = environment.settings.journal
    monkeypatch.setenv("EMBATCH_HOME", str(tmp_path / "home"))
    with api.get_run("nightly", journal=url) as found:
        assert found.id == run.id
        assert found.status().state is RunState.RUNNING
    (listed,) = api.list_runs(tags={"t": "1"}, journal=url)
    assert listed.id == run.id
    assert api.list_runs(tags={"t": "2"}, journal=url) == []


@pytest.mark.parametrize(
    ("data", "error"),
    [([], InvalidRequestError), (iter([]), InputError), (3, InvalidRequestError)],
)
def test_data_that_is_none_is_refused(
    world: World, tmp_path: Path, data: Iterable[str], error: type[Exception]
) -> None:
    """An empty or impossible dataset is said so, and no output begins."""
    with pytest.raises(error):
        api.submit(data, tmp_path / "out", environment=world())
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_two_runs_share_a_process_by_priority(world: World, tmp_path: Path) -> None:
    """The urgent run is done first, though it came last."""
    environment = world(delay_s=0.01)
    slow = api.submit(
        pairs(400).items(), tmp_path / "slow", max_batch_items=8, environment=environment
    )
    fast = api.submit(
        pairs(40).items(),
        tmp_path / "fast",
        max_batch_items=8,
        priority=10,
        environment=environment,
    )
    from embatch.execution.threads import ThreadExecutor

    executor = ThreadExecutor(environment.journal, environment.context)
    executor.work(until=lambda: fast.status().finished)
    assert fast.status().state is RunState.COMPLETED
    assert not slow.status().finished
    assert slow.wait(60).state is RunState.COMPLETED
    assert_right(rows_of(tmp_path / "slow"), pairs(400))
