"""Messages through apprise: chats, e-mail and whatever else it knows. Its only import."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import apprise

from embatch.observe.attempt import Attempt
from embatch.observe.words import body_of, title_of, tone_of

_LOGGER: Final = logging.getLogger("apprise")
_TONES: Final = {
    "success": apprise.NotifyType.SUCCESS,
    "warning": apprise.NotifyType.WARNING,
    "failure": apprise.NotifyType.FAILURE,
    "info": apprise.NotifyType.INFO,
}


class _WithoutOurs(logging.Filter):
    """Keeps what apprise says of our targets out of all logs: it may quote a URL or an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.ours


_WITHOUT_OURS: Final = _WithoutOurs()


@contextmanager
def _hushed() -> Iterator[None]:
    _LOGGER.addFilter(_WITHOUT_OURS)
    me = threading.get_ident()
    _WITHOUT_OURS.ours.add(me)
    try:
        yield
    finally:
        _WITHOUT_OURS.ours.discard(me)


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
