"""Messages through apprise: chats, e-mail and whatever else it knows. Its only import."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import apprise

from embatch.observe.attempt import Attempt
from embatch.observe.words import body_of, title_of, tone_of

_LOGGERS: Final = ("apprise", "urllib3.connectionpool", "urllib3.util.retry")
_TONES: Final = {
    "success": apprise.NotifyType.SUCCESS,
    "warning": apprise.NotifyType.WARNING,
    "failure": apprise.NotifyType.FAILURE,
    "info": apprise.NotifyType.INFO,
}


class _WithoutOurs(logging.Filter):
    """Keeps what apprise says of our targets out of all logs: it quotes URLs and answers.

    It sends in threads of its own, so all that it says while a message of ours is under way stays
    out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._under_way = 0
        self._counting = threading.Lock()

    def __enter__(self) -> None:
        with self._counting:
            self._under_way += 1

    def __exit__(self, *_: object) -> None:
        with self._counting:
            self._under_way -= 1

    def filter(self, _record: logging.LogRecord) -> bool:
        return not self._under_way


_WITHOUT_OURS: Final = _WithoutOurs()


@contextmanager
def _hushed() -> Iterator[None]:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_WITHOUT_OURS)
    with _WITHOUT_OURS:
        yield


def is_understood(url: str) -> bool:
    """Apprise can make a target of this URL."""
    with _hushed():
        return apprise.Apprise.instantiate(url, suppress_exceptions=True) is not None


def send(target: str, _message_id: str, payload: Mapping[str, Any]) -> Attempt:
    """One attempt; apprise says no more of a failure than that it was one."""
    with _hushed():
        asset = apprise.AppriseAsset(app_id="embatch", app_desc="embatch", async_mode=False)
        sender = apprise.Apprise(asset=asset)
        if not sender.add(target):
            return Attempt.failed("apprise does not understand its URL")
        arrived = sender.notify(
            body=body_of(payload), title=title_of(payload), notify_type=_TONES[tone_of(payload)]
        )
    return Attempt.arrived() if arrived else Attempt.failed("apprise could not deliver it")
