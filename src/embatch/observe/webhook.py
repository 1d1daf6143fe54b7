"""Webhooks in the form of Standard Webhooks (standardwebhooks.com, read 2026-11-23).

The signature is HMAC-SHA256 over `id.timestamp.body`; an answer of 2xx is a delivery, 410 says
that the receiver wants no more.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from embatch.errors import ConfigError
from embatch.observe.attempt import Attempt

PREFIX: Final = "whsec_"
LEAST_SECRET_BYTES: Final = 24
"""Shorter secrets can be guessed."""
GONE: Final = 410

Post = Callable[[str, Mapping[str, str], bytes], int | str]
"""Posts a body to a URL: the status of the answer, or why there was none."""


def parse_secrets(words: str) -> tuple[bytes, ...]:
    """The keys that a text of one or more secrets, with spaces between, names.

    `whsec_…` is base64, all else is taken as it is. A webhook is signed with each, so that a
    receiver may change from one to the next. ConfigError for one that cannot be used.
    """
    return tuple(_key(word) for word in words.split())


def _key(word: str) -> bytes:
    if not word.startswith(PREFIX):
        key = word.encode()
    else:
        try:
            key = base64.b64decode(word.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            raise ConfigError(
                f"EMBATCH_WEBHOOK_SECRET begins with {PREFIX}, and what follows is not base64: "
                "copy it whole from the receiver"
            ) from None
    if len(key) < LEAST_SECRET_BYTES:
        raise ConfigError(
            f"EMBATCH_WEBHOOK_SECRET holds a secret of {len(key)} bytes, and {LEAST_SECRET_BYTES} "
            "are the least: make one with `openssl rand -base64 32` and write whsec_ before it"
        )
    return key


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: a signature for each key."""
    content = f"{message_id}.{timestamp}.".encode() + body
    made = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return " ".join(f"v1,{signature}" for signature in made)


class WebhookSender:
    """Sends messages as signed webhooks."""

    def __init__(
        self, keys: Sequence[bytes], post: Post, *, clock: Callable[[], float], agent: str
    ) -> None:
        self._keys = keys
        self._post = post
        self._clock = clock
        self._agent = agent

    def __call__(self, target: str, message_id: str, payload: Mapping[str, Any]) -> Attempt:
        """One attempt. Its signature is of now, its id and body are those of every repeat."""
        body = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
        timestamp = int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": self._agent,
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._keys, message_id, timestamp, body),
        }
        answer = self._post(target, headers, body)
        if isinstance(answer, str):
            return Attempt.failed(answer, unreachable=True)
        if 200 <= answer < 300:
            return Attempt.arrived()
        if answer == GONE:
            return Attempt.hopeless("its receiver answered 410 (gone): it wants no more")
        if 300 <= answer < 400:
            return Attempt.failed(f"its receiver answered {answer}: redirects are not followed")
        return Attempt.failed(
            f"its receiver answered {answer}", unreachable=answer >= 500 or answer == 429
        )
