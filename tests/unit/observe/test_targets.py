"""Which targets are understood, how webhooks are signed, and what a message says to people."""

import base64
import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

from embatch.config import load_settings
from embatch.errors import ConfigError, EmbatchError, InvalidRequestError
from embatch.observe import words
from embatch.observe.targets import require_targets, ways_here
from embatch.observe.webhook import WebhookSender, parse_secrets, sign

# apprise 2.2 has its e-mail import imghdr, which Python 3.11 and 3.12 call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.mark.parametrize(
    ("target", "kind", "told"),
    [
        ("https://example.org/x-token", ConfigError, "EMBATCH_WEBHOOK_SECRET"),
        ("https://hooks.slack.com/services/x-token", InvalidRequestError, "slack://"),
        ("https://discord.com/api/webhooks/x-token", InvalidRequestError, "discord://"),
        ("nosuch://x-token", InvalidRequestError, "nosuch://…"),
        ("slack://", InvalidRequestError, "slack://…"),
        ("x-token", InvalidRequestError, "wants a URL"),
        ("https://", InvalidRequestError, "no URL"),
        ("https://host:x-token/", InvalidRequestError, "no URL"),
        ("https://exa mple.org/x-token", InvalidRequestError, "no URL"),
    ],
)
def test_a_bad_target_is_refused_by_its_scheme(
    target: str, kind: type[EmbatchError], told: str
) -> None:
    """The message says how to mend it and holds no more of the URL than its scheme."""
    with pytest.raises(kind, match=told) as refusal:
        require_targets([target], signs=False)
    assert "x-token" not in str(refusal.value)


def test_targets_are_taken_once_and_in_order() -> None:
    """Both ways, spaces around them cut off."""
    wanted = ["json://example.org/y", " https://example.org/x ", "json://example.org/y"]
    assert require_targets(wanted, signs=True) == (
        "json://example.org/y",
        "https://example.org/x",
    )


def test_without_apprise_its_targets_are_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a process that has neither library nor secret takes no message of any way."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'embatch\[notify\]'"):
        require_targets(["slack://a/b/c"], signs=True)
    assert ways_here(signs=False) == []
    assert ways_here(signs=True) == ["webhook"]


def test_the_signature_is_that_of_the_specification() -> None:
    """The example that Standard Webhooks' own libraries are tested with."""
    keys = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["short", "whsec_not base64", "whsec_!!!!", "whsec_AAAA"])
def test_a_secret_that_cannot_be_used_is_refused_unseen(secret: str) -> None:
    """By what is wrong with it."""
    with pytest.raises(ConfigError) as refusal:
        parse_secrets(secret)
    assert "short" not in str(refusal.value)
    assert "AAAA" not in str(refusal.value)


def test_each_of_two_secrets_signs() -> None:
    """So that a receiver may change from one to the next."""
    keys = parse_secrets(f"{SECRET} another-secret-of-24-characters")
    both = sign(keys, "msg_1", 1, b"{}").split(" ")
    assert both == [sign([key], "msg_1", 1, b"{}") for key in keys]


@pytest.mark.parametrize(
    ("answer", "delivered", "final", "unreachable"),
    [
        (200, True, False, False),
        (204, True, False, False),
        (302, False, False, False),
        (400, False, False, False),
        (410, False, True, False),
        (429, False, False, True),
        (503, False, False, True),
        ("no answer came in time", False, False, True),
    ],
)
def test_an_answer_decides(
    answer: int | str, *, delivered: bool, final: bool, unreachable: bool
) -> None:
    """2xx is a delivery, 410 the end; what is no answer at all holds up the others too."""
    sender = WebhookSender(
        parse_secrets(SECRET), lambda *_: answer, clock=lambda: 1_000.7, agent="embatch"
    )
    attempt = sender("https://example.org/x", "msg_1", {"type": "test", "data": {}})
    assert (attempt.delivered, attempt.final, attempt.unreachable) == (
        delivered,
        final,
        unreachable,
    )


def test_people_read_rows_money_and_what_to_type() -> None:
    """A title and a few lines."""
    payload: dict[str, Any] = {
        "type": "run.over_budget",
        "data": {
            "run": "r1",
            "name": "catalogue",
            "rows": 1_000,
            "written": 900,
            "failed": 10,
            "success_pct": 98.9,
            "elapsed_s": 7_260.0,
            "spent_usd": 1.5,
            "max_cost_usd": 1.5,
            "error": "the cap is $1.50",
        },
    }
    assert words.title_of(payload) == "embatch: run catalogue (r1) stopped at its budget"
    body = words.body_of(payload)
    assert "1,000 rows: 900 written, 10 failed (98.9 % succeeded), 2 h" in body
    assert "$1.5000 spent of $1.50" in body
    assert "embatch resume r1 --max-cost USD" in body


def test_apprise_logs_nothing_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """It names hosts and answers of targets, which its callers may log."""
    from embatch.observe.chat import send

    with caplog.at_level(logging.DEBUG):
        attempt = send("json://127.0.0.1:1/x-token", "msg_1", {"type": "test", "data": {}})
    assert not attempt.delivered
    assert "x-token" not in caplog.text
    assert not [one for one in caplog.records if one.name.startswith(("apprise", "urllib3"))]


def test_settings_name_targets_that_no_repr_shows(tmp_path: Path) -> None:
    """A list or a text in embatch.toml, URLs with spaces between in the environment."""
    (tmp_path / "embatch.toml").write_text('notify = ["json://a/x-token", "json://b"]')
    settings = load_settings(environ={}, folder=tmp_path)
    assert settings.notify == ("json://a/x-token", "json://b")
    assert "x-token" not in repr(settings)
    settings = load_settings(environ={"EMBATCH_NOTIFY": "json://c json://d"}, folder=tmp_path)
    assert settings.notify == ("json://c", "json://d")
    (tmp_path / "embatch.toml").write_text("notify = 3")
    with pytest.raises(ConfigError, match="notify"):
        load_settings(environ={}, folder=tmp_path)
