"""What the clouds' providers do on bad days: answers lost, rows spoiled, lists cut short."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embatch.client.flow import Flow, drive
from embatch.config import CloudSettings, Secret
from embatch.errors import (
    AlignmentError,
    AuthenticationError,
    ConfigError,
    EmbatchError,
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.providers.base import label_hash, wire_key
from embatch.providers.gemini import open_gemini
from embatch.runs.verify import MISSING, Join, Joined
from embatch.types.batch import EmbedContentBatch
from embatch.types.state import JobState

TEXTS = [f"text number {row}" for row in range(240)]
LABEL = "embatch:journal:run:0:1:nonce"


def uploaded(case: Any, stage: Any, texts: list[str] = TEXTS) -> str:
    ref: str = case.provider.upload(stage(texts), LABEL)
    return ref


def submitted(case: Any, stage: Any, texts: list[str] = TEXTS) -> str:
    ref = uploaded(case, stage, texts)
    name: str = case.provider.submit(ref, LABEL, items=len(texts), priority=0).name
    return name


def joined(case: Any, name: str, texts: list[str] = TEXTS) -> tuple[np.ndarray, dict[int, Any]]:
    """The results as a run joins them: vectors by row, errors by row."""
    done = read(case, name, texts)
    return done.vectors, done.errors


def read(case: Any, name: str, texts: list[str] = TEXTS) -> Joined:
    """The results as a run joins them."""
    into = np.zeros((len(texts), 128), dtype=np.float32)
    join = Join(label=LABEL, items=len(texts), space=case.provider.space, into=into)
    for block in case.provider.results(name):
        join.add(block)
    return join.finish()


def assert_right(case: Any, name: str, *, failed: set[int] = frozenset()) -> None:
    """All rows but the failed ones have their own vectors."""
    vectors, errors = joined(case, name)
    assert errors.keys() == failed
    good = [row for row in range(len(TEXTS)) if row not in failed]
    assert np.array_equal(vectors[good], case.truth(TEXTS)[good])


# Create.


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("reset_after", {}),
        ("reset_before", {}),
        *(("server_error", {"code": code, "after": after})
          for code in (500, 502, 503, 504) for after in (False, True)),
        ("server_error", {"code": 502, "html": True}),
        ("truncate", {"at_byte": 40}),
    ],
)  # fmt: skip
def test_an_answer_that_leaves_doubt_is_doubt(cloud: Any, stage: Any, kind: str, args: Any) -> None:
    """While the list does not show the batch, nobody knows: no second request is sent."""
    cloud.fault("listing_delay", seconds=1e6)
    cloud.fault(kind, times=1, match={"route": cloud.route("create")}, **args)
    ref = uploaded(cloud, stage)
    with pytest.raises(IndeterminateError) as caught:
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)
    assert caught.value.label == LABEL
    assert cloud.cloud.bill().requests[cloud.route("create")] == 1
    assert cloud.sleeps == []  # the run waits, without a thread
    assert cloud.reopen().find(LABEL) is None


def test_a_batch_whose_answer_was_lost_is_found(cloud: Any, stage: Any, ended: Any) -> None:
    """By the list, at once where it shows the batch, by any process."""
    cloud.fault("reset_after", times=1, match={"route": cloud.route("create")})
    name = submitted(cloud, stage)
    assert cloud.reopen().find(LABEL).name == name
    assert len(cloud.cloud.jobs()) == 1
    ended(name)
    assert_right(cloud, name)


@pytest.mark.parametrize(
    ("hints", "wait_s", "per_day"),
    [
        ("none", None, False),
        ("minute", 33.4, False),
        ("day", 33.4, True),
        ("misleading", 33.4, True),
    ],
)
def test_a_quota_is_told_with_its_wait(
    cloud: Any, stage: Any, hints: str, wait_s: float | None, per_day: bool
) -> None:
    """Surely without effect: no batch is there, and one may be made later."""
    cloud.fault("rate_limited", times=1, match={"route": cloud.route("create")}, hints=hints)
    ref = uploaded(cloud, stage)
    with pytest.raises(RateLimitError) as caught:
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)
    assert (caught.value.retry_after_s, caught.value.per_day) == (wait_s, per_day)
    assert cloud.cloud.jobs() == []
    assert cloud.sleeps == []
    assert cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)


def test_a_refused_connection_made_nothing(tmp_path: Path) -> None:
    """Nothing was sent, and that is sure."""
    nowhere = CloudSettings(api_key=Secret("key"), gemini_base_url="http://127.0.0.1:1")
    provider = open_gemini(model=None, settings=nowhere)
    with pytest.raises(ProviderUnavailableError):
        provider.submit("files/eb-0", LABEL, items=1, priority=0)
    provider.close()


def test_bad_credentials_are_told_as_such(cloud: Any, stage: Any) -> None:
    """Surely without effect, and no fault of the rows."""
    ref = uploaded(cloud, stage)
    cloud.fault("unauthenticated", match={"route": cloud.route("create")})
    with pytest.raises(AuthenticationError):
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)
    assert cloud.cloud.jobs() == []


def test_a_model_without_batches_is_a_setting_to_mend(cloud: Any, stage: Any) -> None:
    """No row is blamed for it."""
    ref = uploaded(cloud, stage)
    known = cloud.provider._options
    cloud.provider._options = type(known).of("gemini-2.5-flash", None, 128, None)
    with pytest.raises(ConfigError, match=r"gemini-2\.5-flash"):
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)


def gemini_only(case: Any) -> None:
    if case.on != "gemini":
        pytest.skip("Vertex AI does not look at the input when a job is created")


def test_a_bad_row_is_blamed(cloud: Any, tmp_path: Path) -> None:
    """A 400 for a line of the file is InvalidRequestError, and names the line."""
    gemini_only(cloud)
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"key": "x", "request": {"content": {"parts": [{"text": "a"}]}}}\n{"key": 1}\n'
    )
    provider = cloud.provider
    file = drive(provider._gemini.upload_file(path, display_name="bad"), provider._performer)
    with pytest.raises(InvalidRequestError, match="line 2"):
        provider.submit(file.name, LABEL, items=2, priority=0)


def test_an_input_that_is_gone_is_told_as_such(cloud: Any, stage: Any) -> None:
    """The items must be uploaded again: neither the rows nor the key are at fault."""
    gemini_only(cloud)
    ref = uploaded(cloud, stage)
    cloud.provider.discard(None, ref)
    with pytest.raises(NotFoundError, match="48 hours"):
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)


def test_an_input_that_is_not_ready_is_waited_for(cloud: Any, stage: Any) -> None:
    """The service still looks at the file: later."""
    gemini_only(cloud)
    cloud.fault("file_processing", seconds=1e6)
    ref = uploaded(cloud, stage)
    with pytest.raises(ProviderUnavailableError, match="still being taken in"):
        cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0)


def test_a_precondition_is_for_a_person(cloud: Any) -> None:
    """Billing that is off is a 400 too: no batch is bisected for it."""
    error = InvalidRequestError("creating: 400 FAILED_PRECONDITION.")
    error.service_status = "FAILED_PRECONDITION"
    told = type(cloud.provider).__mro__[1].refusal(cloud.provider, error, "files/x")
    assert isinstance(told, PermissionDeniedError)
    assert "billing" in str(told)


# Uploads.


def test_an_upload_done_again_leaves_one_input(cloud: Any, stage: Any) -> None:
    """After a crash another process uploads the same label; discarding leaves nothing."""
    staged = stage(TEXTS)
    refs = {cloud.provider.upload(staged, LABEL), cloud.reopen().upload(staged, LABEL)}
    assert len(refs) == 1
    assert len(cloud.left()) == 1
    for _ in range(2):
        cloud.provider.discard(None, refs.copy().pop())
    assert cloud.left() == []
    assert list(staged.path.parent.glob(".*")) == []


def test_an_upload_of_other_rows_under_the_label_takes_the_place(cloud: Any, stage: Any) -> None:
    """What stands there is looked at, not trusted."""
    cloud.provider.upload(stage(["other"], "other"), LABEL)
    name = submitted(cloud, stage)
    cloud.cloud.finish(name)
    assert_right(cloud, name)


def test_an_upload_that_breaks_off_goes_on(cloud: Any, stage: Any, ended: Any) -> None:
    """In the middle, and at its last answer."""
    route = {"api": "gemini"} if cloud.on == "gemini" else {"api": "storage"}
    cloud.fault("upload_drop", times=2, at_byte=500, match=route)
    cloud.fault("upload_answer_lost", times=1, match=route)
    name = submitted(cloud, stage)
    ended(name)
    assert_right(cloud, name)


def test_more_than_the_service_takes_is_refused_before_it_is_sent(
    cloud: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InvalidRequestError: smaller batches may do."""
    from embatch.providers import gemini, limits, vertex

    small = limits.ServiceLimits(source="a test", rows=10, file_bytes=1000)
    monkeypatch.setattr(gemini, "GEMINI", small)
    monkeypatch.setattr(vertex, "service_limits", lambda *_: small)
    with pytest.raises(InvalidRequestError, match="takes 1000 at once"):
        uploaded(cloud, stage)
    assert cloud.left() == []


def test_a_bad_staging_folder_is_for_a_person(cloud: Any, stage: Any) -> None:
    """It says nothing about the rows: none of them is blamed for it."""
    if cloud.on != "vertex":
        pytest.skip("the Gemini API keeps files itself")
    vertex = cloud.provider._vertex
    cloud.provider._vertex = replace(vertex, places=replace(vertex.places, staging="bucket/staged"))
    with pytest.raises(ConfigError, match="write gs://bucket/path"):
        uploaded(cloud, stage)


def test_labels_and_keys_alone_leave_the_machine(cloud: Any, stage: Any) -> None:
    """Rows travel under the wire keys of their places; users' keys stay here."""
    submitted(cloud, stage)
    (job,) = cloud.cloud.jobs()
    source = cloud.cloud.folder / "jobs" / job["id"] / "input.jsonl"
    lines = source.read_bytes().splitlines()
    assert len(lines) == len(TEXTS)
    assert job["display_name"] == LABEL
    assert b"key 17" not in source.read_bytes()
    for row, line in enumerate(lines):
        assert wire_key(LABEL, row).encode() in line


# Looking.


def test_a_long_list_is_walked_to_its_end(cloud: Any, stage: Any) -> None:
    """Small and empty pages, jobs of others: the batch is found, and what is not there is not."""
    name = submitted(cloud, stage)
    for number in range(5):
        other = f"{LABEL}-{number}"
        ref = cloud.provider.upload(stage(["x"], str(number)), other)
        cloud.provider.submit(ref, other, items=1, priority=0)
    cloud.fault("small_pages", size=2)
    cloud.fault("empty_pages")
    cloud.fault("foreign_jobs", count=3)
    fresh = cloud.reopen()
    assert fresh.find(LABEL).name == name
    assert fresh.find("not there") is None


def test_a_walk_cut_short_proves_nothing(cloud: Any, stage: Any) -> None:
    """A page that cannot be had is an error, never None."""
    submitted(cloud, stage)
    cloud.fault("small_pages", size=1)
    cloud.fault("server_error", match={"route": cloud.route("list")}, after_matches=0)
    with pytest.raises(ProviderUnavailableError):
        cloud.reopen().find("not there")


def test_a_known_name_is_asked_before_the_list(cloud: Any, stage: Any) -> None:
    """The process that created a batch finds it though no list shows it yet."""
    cloud.fault("listing_delay", seconds=1e6)
    name = submitted(cloud, stage)
    assert cloud.reopen().find(LABEL) is None
    assert cloud.provider.find(LABEL).name == name
    cloud.fault("server_error", match={"route": cloud.route("get")})
    with pytest.raises(ProviderUnavailableError):
        cloud.provider.find(LABEL)


# Ends.


def test_a_cancelled_batch_with_results_gives_them(cloud: Any, stage: Any, ended: Any) -> None:
    """What was done before the end is paid for: it can be read, the rest is missing."""
    cloud.fault("cancel_partial", share=0.5)
    cloud.hold()
    name = submitted(cloud, stage)
    cloud.provider.cancel(name)
    status = ended(name)
    assert (status.state, status.has_results) == (JobState.CANCELLED, True)
    vectors, errors = joined(cloud, name)
    assert errors == dict.fromkeys(range(120, 240), MISSING)
    assert np.array_equal(vectors[:120], cloud.truth(TEXTS)[:120])


def test_a_late_cancel_marks_the_rows_that_were_not_served(
    cloud: Any, stage: Any, ended: Any
) -> None:
    """The job counts as completed; its cancelled rows may be sent again."""
    cloud.fault("cancel_late", share=0.5)
    cloud.hold()
    name = submitted(cloud, stage)
    cloud.provider.cancel(name)
    assert ended(name).state is JobState.COMPLETED
    _, errors = joined(cloud, name)
    assert errors.keys() == set(range(120, 240))
    assert all(error.transient and error.code == "cancelled" for error in errors.values())


@pytest.mark.parametrize(("code", "refused"), [(8, False), (13, False), (3, True)])
def test_a_failed_job_says_whether_its_rows_are_at_fault(
    cloud: Any, stage: Any, ended: Any, code: int, refused: bool
) -> None:
    """By its code; what the service says of it is told without texts."""
    cloud.fault("job_failed", code=code, message=f"secret {TEXTS[3]} quota exceeded")
    status = ended(submitted(cloud, stage))
    assert (status.state, status.has_results) == (JobState.FAILED, False)
    assert status.refused is refused
    assert TEXTS[3] not in str(status.error)


def test_a_failed_job_with_results_gives_them(cloud: Any, stage: Any, ended: Any) -> None:
    """What is there was paid for."""
    cloud.fault("job_failed", share=0.25)
    name = submitted(cloud, stage)
    assert ended(name).has_results
    assert_right(cloud, name, failed=set(range(60, 240)))


def test_an_expired_job_is_over(cloud: Any, stage: Any, ended: Any) -> None:
    """Without results."""
    cloud.fault("job_expired")
    status = ended(submitted(cloud, stage))
    assert (status.state, status.has_results) == (JobState.EXPIRED, False)


def test_an_unknown_word_for_the_end_is_no_end_of_the_results(
    cloud: Any, stage: Any, ended: Any
) -> None:
    """The word is kept, and what the service says is done is done."""
    cloud.fault("state_word", word="BATCH_STATE_GLOWING")
    name = submitted(cloud, stage)
    status = ended(name)
    assert (status.state, status.has_results) == ("glowing", True)
    assert_right(cloud, name)


class Told:
    """A cloud whose every look shows the same batch."""

    def __init__(self, **shown: Any) -> None:
        label = {"display_name": "x", "label": LABEL, "model": "m"}
        self.batch = EmbedContentBatch(name="batches/x", **label, **shown)

    def get(self, _: str) -> Flow[EmbedContentBatch]:
        return self.batch
        yield


def test_a_completed_batch_without_results_is_looked_at_again(cloud: Any) -> None:
    """Its rows are paid for: it is neither failed nor bought again."""
    cloud.provider._once = Told(state=JobState.COMPLETED, done=True)
    with pytest.raises(ProviderUnavailableError, match="no results yet"):
        cloud.provider.poll("batches/x")


def test_results_that_come_late_are_waited_for(cloud: Any, stage: Any, ended: Any) -> None:
    """The batch is done, its file is not there yet."""
    name = submitted(cloud, stage)
    ended(name)
    if cloud.on == "gemini":
        cloud.fault("result_late")
    else:
        cloud.fault("server_error", match={"api": "storage", "method": "GET"}, code=404)
    with pytest.raises(ProviderUnavailableError):
        joined(cloud, name)
    cloud.cloud.clear_faults()
    assert_right(cloud, name)


# Rows.


def test_shuffled_and_sharded_rows_find_their_places(cloud: Any, stage: Any, ended: Any) -> None:
    """By key, never by place."""
    cloud.fault("shuffle")
    cloud.fault("output_shards", count=3)
    name = submitted(cloud, stage)
    ended(name)
    assert_right(cloud, name)


@pytest.mark.parametrize(
    ("kind", "args", "code"),
    [
        *(("null_vector", {"shape": shape}, "no_vector")
          for shape in ("null", "empty", "absent", "no_response")),
        ("null_value", {}, "not_finite"),
        ("nan", {}, "not_finite"),
        ("nan", {"bare": True}, "not_finite"),
        ("overflow", {}, "not_finite"),
        ("wrong_dims", {}, "wrong_dims"),
        ("zero_vector", {}, "zero_vector"),
        ("missing_rows", {}, "missing"),
        ("broken_line", {}, "missing"),
        ("row_error", {"code": 3}, "invalid_argument"),
        ("row_error", {"code": 14, "message": None}, "unavailable"),
    ],
)  # fmt: skip
def test_a_spoiled_row_fails_in_its_place(
    cloud: Any, stage: Any, ended: Any, kind: str, args: Any, code: str
) -> None:
    """The first row too, from which no length is learned."""
    cloud.fault(kind, indices=[0, 77], **args)
    name = submitted(cloud, stage)
    ended(name)
    assert_right(cloud, name, failed={0, 77})
    _, errors = joined(cloud, name)
    codes = {error.code for error in errors.values()}
    assert codes <= {code, "unreadable"}
    assert all(error.transient for error in errors.values()) is (code != "invalid_argument")


TRANSIENT = {8, 13, 14, 4, 10, 1}


@pytest.mark.parametrize("code", range(1, 17))
def test_codes_of_rows_say_whether_to_send_them_again(
    cloud: Any, stage: Any, ended: Any, code: int
) -> None:
    """As google.rpc means them."""
    if cloud.on == "vertex" and code == 10:
        pytest.skip("the fake Vertex AI has no word for ABORTED")
    cloud.fault("row_error", indices=[5], code=code, message=f"about {TEXTS[5]}")
    name = submitted(cloud, stage)
    ended(name)
    _, errors = joined(cloud, name)
    assert list(errors) == [5]
    assert errors[5].transient is (code in TRANSIENT)
    assert TEXTS[5] not in errors[5].message


@pytest.mark.parametrize("kind", ["foreign_rows", "unknown_rows"])
def test_keys_of_others_are_never_taken(cloud: Any, stage: Any, ended: Any, kind: str) -> None:
    """They are given as they came: the run's join refuses those of another batch, and counts those
    that nobody sent without placing one."""
    ref = cloud.provider.upload(stage(TEXTS, "first"), "another label")
    cloud.provider.submit(ref, "another label", items=len(TEXTS), priority=0)
    cloud.fault(kind, count=2, match={"display_name": LABEL})
    name = submitted(cloud, stage)
    ended(name)
    own = label_hash(LABEL)
    keys = [key for block in cloud.provider.results(name) for key in block.keys]
    assert len([key for key in keys if not key.startswith(own)]) == 2
    if kind == "foreign_rows":
        with pytest.raises(AlignmentError):
            joined(cloud, name)
    else:
        assert_right(cloud, name)
        assert read(cloud, name).unknown == 2


def test_doubled_rows_pass_only_when_they_are_equal(cloud: Any, stage: Any, ended: Any) -> None:
    """The same line twice is one row; two vectors for one key are none."""
    cloud.fault("doubled_rows", times=1, count=5)
    name = submitted(cloud, stage)
    ended(name)
    assert_right(cloud, name)
    cloud.provider.discard(name, None)
    cloud.cloud.clear_faults("doubled_rows")
    cloud.fault("doubled_rows", count=1, identical=False)
    name = submitted(cloud, stage)
    ended(name)
    with pytest.raises(AlignmentError):
        joined(cloud, name)


def test_dims_that_are_ignored_are_cut_here(cloud: Any, stage: Any, ended: Any) -> None:
    """In batches and at once: the first values, at length 1."""
    cloud.fault("dims_ignored")
    name = submitted(cloud, stage)
    ended(name)
    assert_right(cloud, name)
    assert np.array_equal(cloud.provider.embed(TEXTS[:3]).vectors, cloud.truth(TEXTS[:3]))


def test_tokens_are_told_where_the_service_tells_them(cloud: Any, stage: Any, ended: Any) -> None:
    """As it billed them; unknown without a word of it."""
    name = submitted(cloud, stage)
    ended(name)
    blocks = list(cloud.provider.results(name))
    total = sum(int(block.tokens.sum()) for block in blocks)
    assert total == cloud.cloud.bill().tokens
    cloud.fault("usage_missing")
    cloud.provider.discard(name, None)
    name = submitted(cloud, stage)
    ended(name)
    assert all(block.tokens is None for block in cloud.provider.results(name))


def test_fewer_vectors_than_texts_are_no_vectors(cloud: Any) -> None:
    """Nothing shifts."""
    cloud.fault("fewer_vectors")
    with pytest.raises(AlignmentError):
        cloud.provider.embed(TEXTS[:5])


def test_a_call_at_once_is_billed_no_oftener_than_its_caller_knows(cloud: Any) -> None:
    """An answer that is lost is an error, not another purchase; a query is asked again."""
    cloud.fault("reset_after", times=1, match={"path": "*mbed*"})
    with pytest.raises(ProviderUnavailableError):
        cloud.provider.embed(TEXTS[:1])
    assert cloud.cloud.bill().interactive_rows == 1
    cloud.provider.embed(TEXTS[:1])
    assert cloud.cloud.bill().interactive_rows == 2
    cloud.fault("server_error", times=1, match={"path": "*mbed*"})
    cloud.provider.embed(TEXTS[:1], query=True)
    assert cloud.cloud.bill().interactive_rows == 3


# What is left.


def test_discarding_takes_input_and_results(cloud: Any, stage: Any, ended: Any) -> None:
    """By another process, in any order, again and again."""
    ref = uploaded(cloud, stage)
    name = cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0).name
    ended(name)
    other = cloud.reopen()
    for given in ((name, None), (name, ref), (None, ref), (name, ref)):
        other.discard(*given)
    assert cloud.left() == []
    assert cloud.cloud.jobs() == []
    assert cloud.provider.find(LABEL) is None


def test_discarding_a_running_batch_stops_it_first(cloud: Any, stage: Any) -> None:
    """Deleting alone would not stop its bill."""
    ref = uploaded(cloud, stage)
    cloud.hold()
    name = cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0).name
    cloud.provider.discard(name, ref)
    assert cloud.cloud.jobs() == []
    assert cloud.cloud.bill().rows == 0
    assert cloud.left() == []


def test_an_input_goes_without_the_results_beside_it(cloud: Any, stage: Any, ended: Any) -> None:
    """A job that nobody has found may turn up late: what it wrote must still be there."""
    ref = uploaded(cloud, stage)
    name = cloud.provider.submit(ref, LABEL, items=len(TEXTS), priority=0).name
    ended(name)
    cloud.provider.discard(None, ref)
    assert_right(cloud, name)


def test_a_status_bears_the_label_and_the_end(cloud: Any, stage: Any, ended: Any) -> None:
    """What a person names is checked by it, and results are known to last so long."""
    name = submitted(cloud, stage)
    before = cloud.provider.poll(name)
    assert before.label == LABEL
    status = ended(name)
    assert status.label == LABEL
    assert status.ended_at == pytest.approx(cloud.cloud.now(), abs=60.0)
    assert not status.quota


def test_a_job_that_failed_for_quota_says_so(cloud: Any, stage: Any, ended: Any) -> None:
    """It is no fault of its rows: it costs no attempt."""
    cloud.fault("job_failed", times=1, code=8)
    status = ended(submitted(cloud, stage))
    assert (status.quota, status.refused, status.has_results) == (True, False, False)


def test_cancelling_what_is_gone_is_not_found(cloud: Any, stage: Any) -> None:
    """Typed, so that callers may pass over it."""
    name = submitted(cloud, stage)
    cloud.cloud.finish(name)
    cloud.provider.discard(name, None)
    with pytest.raises(NotFoundError):
        cloud.provider.cancel(name)


def secrets(case: Any) -> Iterator[str]:
    yield case.cloud.api_key
    yield case.cloud.access_token


def test_errors_name_no_key_and_no_text(cloud: Any, stage: Any) -> None:
    """Whatever fails."""
    texts = ["a very private sentence"] * 3
    ref = uploaded(cloud, stage, texts)
    told: list[str] = []
    for kind, args in (
        ("server_error", {"code": 500}),
        ("rate_limited", {}),
        ("unauthenticated", {}),
        ("reset_before", {}),
    ):
        cloud.fault(kind, **args)
        for call in (
            lambda: cloud.provider.submit(ref, LABEL, items=3, priority=0),
            lambda: cloud.provider.poll("batches/abc" if cloud.on == "gemini" else JOB),
            lambda: cloud.provider.embed(texts),
            lambda: cloud.provider.find(LABEL),
        ):
            with pytest.raises(EmbatchError) as caught:
                call()
            told.append(f"{caught.value!r} {caught.value}")
        cloud.cloud.clear_faults(kind)
    for secret in (*secrets(cloud), texts[0]):
        assert not any(secret in text for text in told)


JOB = "projects/1/locations/us-central1/batchPredictionJobs/1"
