"""Opens what delivers a journal's notifications in this process."""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from embatch.journal.store import Journal
from embatch.observe.attempt import Attempt, Send
from embatch.observe.courier import Courier
from embatch.observe.targets import Way, way_of, ways_here
from embatch.observe.webhook import WebhookSender, parse_secrets
from embatch.runs.vigil import keep_vigil
from embatch.transport import Lost, Request, Transport

ANSWER_S: Final = 10.0
"""A receiver that says nothing for so long has not taken the message."""


def open_courier(
    journal: Journal,
    secret: str | None,
    *,
    clock: Callable[[], float],
    run_ids: Collection[str] | None = None,
) -> Courier:
    """The courier of a process that works on `run_ids`, or on all runs; use it in `with`.

    `secret` signs webhooks; without it they are left to processes that have one. It delivers what
    waits for any run, and looks after those that it works on. ConfigError for a bad secret.
    """
    return Courier(
        journal.outbox,
        open_senders(secret, clock=clock),
        look=lambda: keep_vigil(journal, run_ids, now=clock()),
    )


def open_senders(secret: str | None, *, clock: Callable[[], float]) -> Mapping[Way, Send]:
    """How this process sends, by the way of a target."""
    senders: dict[Way, Send] = {}
    for way in ways_here(signs=secret is not None):
        if way == "apprise":
            from embatch.observe.chat import send

            senders[way] = send
        elif secret is not None:
            senders[way] = WebhookSender(parse_secrets(secret), _post, clock=clock, agent="embatch")
    return senders


def send_once(
    target: str,
    secret: str | None,
    message_id: str,
    payload: Mapping[str, object],
    *,
    clock: Callable[[], float],
) -> Attempt:
    """One attempt at a target outside of any outbox, such as a test."""
    return open_senders(secret, clock=clock)[way_of(target)](target, message_id, payload)


def _post(url: str, headers: Mapping[str, str], body: bytes) -> int | str:
    """Posts, and reads of the answer its status alone: what it says is nobody's business."""
    transport = Transport(timeout_s=ANSWER_S)
    try:
        answer = transport.open(
            Request(method="POST", url=url, headers=headers, body=body, private=True)
        )
        if isinstance(answer, Lost):
            return answer.reason
        transport.shut(answer)
        return answer.status
    finally:
        transport.close()
