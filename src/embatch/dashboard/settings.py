"""How a dashboard was asked to be."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from embatch.config import Secret, Settings

KEPT_NOTICES: Final = 200


class Notices:
    """What an action did, kept until its browser has seen it: sentences are no part of a URL."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def leave(self, session: str, words: str) -> str:
        """Keeps a sentence for a session, and gives the ticket that its next page shows."""
        ticket = secrets.token_hex(6)
        self._kept[ticket] = (session, words)
        while len(self._kept) > KEPT_NOTICES:
            self._kept.popitem(last=False)
        return ticket

    def take(self, session: str, ticket: str | None) -> str | None:
        """The sentence of a ticket, for its own session, as often as the page is loaded."""
        owner, words = self._kept.get(ticket or "", ("", ""))
        return words if owner == session and words else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardSettings:
    """What the command said."""

    base: Settings
    """Where the journal is, and what providers of actions need."""
    token: Secret | None = None
    """What browsers must show; None: nothing, on loopback alone."""
    read_only: bool = False
    port: int = 0
    notices: Notices = field(default_factory=Notices)
