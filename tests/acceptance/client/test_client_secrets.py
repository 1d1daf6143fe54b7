"""No key, token or text of a user in any message, repr, log or traceback."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from embatch.errors import EmbatchError
from embatch.testing.cloud import FakeCloud
from embatch.types.embedding import RowError

KEY = "AIzaCanaryKey0123456789"
TEXT = "canary words of a user"
TEXTS = [TEXT, f"{TEXT} again"]
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("server_error", {"code": 503}),
    ("server_error", {"code": 500, "html": True}),
    ("rate_limited", {"hints": "day"}),
    ("unauthenticated", {}),
    ("reset_before", {}),
    ("reset_after", {}),
    ("truncate", {"at_byte": 1}),
]
CALLS: dict[str, Callable[[Any], object]] = {
    "create": lambda c: c.async_batch_embed_contents(TEXTS, display_name="x"),
    "create-file": lambda c: c.async_batch_embed_contents(TEXTS * 600, display_name="x"),
    "embed": lambda c: c.embed_contents(TEXTS),
    "count": lambda c: c.count_tokens(TEXTS),
    "list": lambda c: list(c.list_batches()),
}


def _check(said: str) -> None:
    assert KEY not in said
    assert TEXT not in said
    assert "Canary" not in said


def _embatch_locals(error: BaseException) -> str:
    """The traceback with locals of embatch's own frames, causes and contexts included."""
    told: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "/client/flow.py" in frame.f_code.co_filename or "transport" in str(frame):
                told.append(repr(frame.f_locals))
        told.extend(traceback.format_exception(error))
        told.append(repr(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join(told)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("fault", "args"), FAULTS)
def test_failing_calls_show_nothing(
    case: Any, caplog: pytest.LogCaptureFixture, call: str, fault: str, args: dict[str, Any]
) -> None:
    """Whatever fails, however deep the log: the key, the token and the texts stay unseen."""
    caplog.set_level(logging.DEBUG)
    with FakeCloud(api_key=KEY, access_token=f"ya29.{KEY}") as cloud:
        case.cloud = cloud
        client = case.open(
            **({"credentials": Credentials(token=f"ya29.{KEY}")} if case.on == "vertex" else {})
        )
        _check(repr(client) + repr(vars(getattr(client, "client", client))))
        case.fault(fault, match={"api": "gemini" if case.on == "gemini" else "vertex"}, **args)
        with pytest.raises(EmbatchError) as caught:
            CALLS[call](client)
    _check(_embatch_locals(caught.value))
    _check(caplog.text)


def test_logs_show_no_running_upload(
    gemini: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The URL of an upload is a right to write: the HTTP library's own log does not hold it."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"request":{}}\n')
    gemini.client.upload_file(path)
    assert "/upload/" in caplog.text
    assert "upload_id" not in caplog.text


def test_values_show_no_texts(case: Any) -> None:
    """Batches and results are shown without what users wrote."""
    case.fault("row_error", code=3, message=f"cannot embed {TEXT}", indices=[0])
    batch = case.client.async_batch_embed_contents(
        TEXTS, display_name="x", keys=["Canary 1", "Canary 2"]
    )
    case.cloud.finish(batch.name)
    found = case.client.get_batch_embeddings(batch)
    assert isinstance(found[0], RowError)
    _check(f"{batch!r} {found!r} {found[0]!r} {found[1]!r} {found.failed_responses!r}")


def test_messages_of_jobs_show_no_texts(case: Any) -> None:
    """A job's own error is told by its code, not by words that may quote."""
    case.fault("job_failed", message=f"bad input: {TEXT}")
    batch = case.finished(TEXTS)
    with pytest.raises(EmbatchError) as caught:
        case.client.get_batch_embeddings(batch)
    _check(f"{batch!r} {_embatch_locals(caught.value)}")
