"""Faults of network and service: what is tried again, what never is, and what the caller hears."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from embatch.client import Auth, RetryPolicy
from embatch.client.auth import SCOPE
from embatch.errors import (
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

TEXTS = ["a", "b"]
AMBIGUOUS = [
    ("reset_after", {}),
    ("server_error", {"code": 503, "after": True}),
    ("server_error", {"code": 500, "after": True}),
    ("server_error", {"code": 504, "after": True}),
    ("server_error", {"code": 502, "after": True, "html": True}),
    ("truncate", {"at_byte": 20}),
]


@pytest.mark.parametrize(("fault", "args"), AMBIGUOUS)
def test_lost_answers_of_create_are_found_in_the_list(
    case: Any, fault: str, args: dict[str, Any]
) -> None:
    """The batch was made, the answer lost: it is found by its label and never made twice."""
    case.fault("small_pages", size=1)
    case.client.async_batch_embed_contents(TEXTS, display_name="earlier")
    case.fault(fault, times=1, match={"route": case.route("create")}, **args)
    batch = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert batch.display_name == "x"
    assert case.asked(case.route("create")) == 2
    assert len(case.cloud.jobs()) == 2


@pytest.mark.parametrize(
    ("fault", "args"),
    [("reset_before", {}), ("server_error", {"code": 503}), ("server_error", {"code": 500})],
)
def test_doubtful_creates_are_not_repeated(case: Any, fault: str, args: dict[str, Any]) -> None:
    """Nothing in the list: the error bears the label, and create was sent once."""
    case.fault(fault, times=1, match={"route": case.route("create")}, **args)
    with pytest.raises(IndeterminateError) as caught:
        case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert caught.value.label.startswith("x [embatch ")
    assert caught.value.label in str(caught.value)
    assert case.asked(case.route("create")) == 1
    assert case.asked(case.route("list")) == 2
    assert case.client.find_batch(caught.value.label) is None


def test_batches_that_are_listed_late(held: Any) -> None:
    """Made but not listed yet: an IndeterminateError whose label finds it later."""
    held.fault("listing_delay", seconds=60.0)
    held.fault("reset_after", times=1, match={"route": "batches.create"})
    with pytest.raises(IndeterminateError) as caught:
        held.client.async_batch_embed_contents(TEXTS, display_name="x")
    held.cloud.advance(61)
    assert held.client.find_batch(caught.value.label) is not None
    assert len(held.cloud.jobs()) == 1


def test_unreachable_services(case: Any) -> None:
    """A connection that never was leaves no doubt: an error to try again, after some tries."""
    client = case.open(base_url="http://127.0.0.1:9", retry=RetryPolicy(attempts=3))
    case.sleeps.clear()
    with pytest.raises(ProviderUnavailableError, match="refused"):
        client.async_batch_embed_contents(TEXTS, display_name="x")
    assert len(case.sleeps) == 2


def test_base_urls_that_are_none(case: Any) -> None:
    """A base URL without a scheme that HTTP knows is a setting to mend."""
    client = case.open(base_url="ftp://example.invalid")
    with pytest.raises(ConfigError, match="base URL"):
        list(client.list_batches())


def test_lost_answers_of_deletes(case: Any) -> None:
    """The batch went, the answer was lost: the second try finds nothing, and that is success."""
    made = case.finished(TEXTS)
    case.fault("reset_after", times=1, match={"route": case.route("delete")})
    case.client.delete_batch(made.name)
    assert case.asked(case.route("delete")) == 2
    with pytest.raises(NotFoundError):
        case.client.delete_batch(made.name)


def test_lost_answers_of_file_deletes(gemini: Any, tmp_path: Path) -> None:
    """The same for files; one that was never there is still refused."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"request":{}}\n')
    name = gemini.client.upload_file(path).name
    gemini.fault("reset_after", times=1, match={"route": "files.delete"})
    gemini.client.delete_file(name)
    with pytest.raises(PermissionDeniedError):
        gemini.client.delete_file(name)


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_reads_are_tried_again(case: Any, code: int) -> None:
    """What may be repeated is: twice a 5xx, then the answer."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.fault("server_error", times=2, code=code, match={"route": case.route("get")})
    case.sleeps.clear()
    assert case.client.get_batch_status(made.name).name == made.name
    assert len(case.sleeps) == 2
    assert case.sleeps[0] < case.sleeps[1] <= 2.0


def test_tries_end(case: Any) -> None:
    """After its tries the client gives up with an error to try later."""
    case.fault("server_error", code=503, match={"route": case.route("list")})
    with pytest.raises(ProviderUnavailableError, match="503"):
        list(case.client.list_batches())
    assert case.asked(case.route("list")) == 5


def test_quotas_of_the_minute_are_waited_for(case: Any) -> None:
    """A refusal that says how long to wait is waited for, in create too: nothing was made."""
    case.fault("rate_limited", times=1, hints="minute", match={"route": case.route("create")})
    case.sleeps.clear()
    case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert 33.4 <= case.sleeps[0] <= 34.5
    assert len(case.cloud.jobs()) == 1


def test_retry_after_is_heard(case: Any) -> None:
    """The HTTP header counts where no detail does."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.fault("rate_limited", times=1, retry_after_s=7, match={"route": case.route("get")})
    case.sleeps.clear()
    case.client.get_batch_status(made.name)
    assert 7.0 <= case.sleeps[0] <= 8.0


def test_retry_after_as_a_time_of_day_is_heard(case: Any) -> None:
    """The header's other form, a date, is read as well."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.fault(
        "rate_limited", times=1, retry_after_s=60, as_date=True, match={"route": case.route("get")}
    )
    case.sleeps.clear()
    case.client.get_batch_status(made.name)
    assert 58.0 <= case.sleeps[0] <= 61.0


@pytest.mark.parametrize("fault", ["rate_limited", "server_error", "reset_before"])
def test_waiting_outlives_trouble_that_passes(case: Any, fault: str) -> None:
    """Quotas and outages, from the first look on and longer than any retry: the end is seen."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.cloud.finish(made.name)
    case.fault(fault, times=8, match={"route": case.route("get")})
    case.sleeps.clear()
    batch = case.client.await_batch_completion(made.name, poll_interval=3.0)
    assert batch.is_terminal
    assert case.sleeps == [3.0] * 8


def test_waiting_keeps_the_wait_it_is_given(case: Any) -> None:
    """A quota that names its wait: no look comes before, however short the interval."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.cloud.finish(made.name)
    case.fault("rate_limited", times=1, retry_after_s=90, match={"route": case.route("get")})
    case.sleeps.clear()
    assert case.client.await_batch_completion(made.name, poll_interval=0.01).is_terminal
    assert case.sleeps == [90.0]


@pytest.mark.parametrize("hints", ["day", "misleading"])
def test_quotas_of_the_day_end_the_tries(case: Any, hints: str) -> None:
    """A day's quota is not tried again in seconds, whatever the answer says to wait."""
    case.fault("rate_limited", hints=hints, match={"route": case.route("create")})
    with pytest.raises(RateLimitError) as caught:
        case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert caught.value.per_day
    assert case.asked(case.route("create")) == 1


def test_creates_without_a_hint_are_not_hammered(case: Any) -> None:
    """429 of a create tells nothing: the caller is to wait minutes, the client sends it once."""
    case.fault("rate_limited", match={"route": case.route("create")})
    with pytest.raises(RateLimitError, match="minutes") as caught:
        case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert caught.value.retry_after is None
    assert not caught.value.per_day
    assert case.asked(case.route("create")) == 1


def test_waits_longer_than_patience_go_to_the_caller(case: Any) -> None:
    """A service that asks for hours gets none."""
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.fault(
        "rate_limited", retry_delay_s=68408.0, hints="minute", match={"route": case.route("get")}
    )
    with pytest.raises(RateLimitError) as caught:
        case.client.get_batch_status(made.name)
    assert caught.value.retry_after_s == 68408.0


def test_wrong_keys_are_an_authentication_error(gemini: Any) -> None:
    """Google answers 400 for a wrong key: that is not a bad request."""
    client = gemini.open(api_key="AIza-wrong")
    with pytest.raises(AuthenticationError, match="API key"):
        client.async_batch_embed_contents(TEXTS, display_name="x")


def test_wrong_tokens_are_an_authentication_error(vertex: Any) -> None:
    """A token that the service does not take, and that cannot be renewed."""
    client = vertex.open(credentials=Credentials(token="ya29.wrong"))
    with pytest.raises(AuthenticationError):
        list(client.list_batches())


def _service_account(case: Any, tmp_path: Path) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "account.json"
    told = {
        "type": "service_account",
        "project_id": "a-project",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "robot@a-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": case.cloud.token_url,
    }
    path.write_text(json.dumps(told))
    return path


def test_service_accounts_get_and_renew_tokens(vertex: Any, tmp_path: Path) -> None:
    """A key file gives tokens; one that is refused in between is renewed once, create included."""
    credentials = service_account.Credentials.from_service_account_file(
        str(_service_account(vertex, tmp_path))
    )
    assert not credentials.scopes  # Google gives no token for none: embatch asks for its own
    client = vertex.open(credentials=credentials)
    list(client.list_batches())
    used = getattr(client, "client", client)._clouds[Auth.VERTEX_AI].calls.authorization
    assert used._credentials.scopes == [SCOPE]
    vertex.cloud.revoke_tokens()
    batch = client.async_batch_embed_contents(TEXTS, display_name="x")
    vertex.cloud.finish(batch.name)
    assert len(client.get_batch_embeddings(batch)) == 2
    assert len(vertex.cloud.jobs()) == 1


def test_application_default_credentials(
    vertex: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials given, Google's own search finds them, and the project with them."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(_service_account(vertex, tmp_path)))
    client = vertex.open(credentials=None, project=None)
    batch = client.async_batch_embed_contents(TEXTS, display_name="x")
    assert batch.name.startswith("projects/")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.get_batch_status("batches/" + "a" * 36), NotFoundError),
        (lambda c: c.get_batch_status("nonsense/name"), InvalidRequestError),
        (lambda c: c.get_file("files/abcdefghijkl"), PermissionDeniedError),
        (lambda c: c.delete_file("files/batch-" + "a" * 36), InvalidRequestError),
        (lambda c: c.embed_content("a", model="gemini-embedding-9"), NotFoundError),
        (lambda c: c.embed_content(3), InvalidRequestError),
        (lambda c: c.embed_contents("abc"), InvalidRequestError),
        (lambda c: c.list_batches(auth="azure"), InvalidRequestError),
    ],
)
def test_errors_of_other_calls(gemini: Any, call: Any, error: type[EmbatchError]) -> None:
    """Each kind of failure has its error."""
    with pytest.raises(error):
        call(gemini.client)


def test_a_broken_inline_answer_is_read_again(gemini: Any) -> None:
    """A poll that breaks off in the middle of its rows is repeated; no row counts twice."""
    texts = [f"text {i}" for i in range(200)]
    batch = gemini.finished(texts, output_dimensionality=128)
    gemini.fault("truncate", times=1, at_byte=200_000, match={"route": "batches.get"})
    assert len(gemini.client.get_batch_embeddings(batch).successful_responses) == 200
