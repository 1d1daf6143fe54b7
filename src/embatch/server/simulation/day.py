"""One day: its faults, what struck so far, and the call at hand."""

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embatch.server.simulation.connection import BreakableConnection
from embatch.server.simulation.counts import Counts
from embatch.server.simulation.profile import Profile
from embatch.server.weather import Strikes, Weather
from embatch.server.wire import ApiError
from embatch.testing.cloud.answers import ApiError as CloudError
from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.clock import CloudClock
from embatch.testing.cloud.faults import Facts, Fault

if TYPE_CHECKING:
    from embatch.server.service import Service

_log = logging.getLogger("embatch.server.simulation")


@dataclass(slots=True)
class Door:
    """What is known of a call while it is served."""

    facts: Facts
    late: list[Fault] = field(default_factory=list)
    """Faults that strike after the effect."""


class ResetError(Exception):
    """The connection is to break here, without an answer."""


class Day(Weather):
    """A day with faults. What it remembers ends with the server, but for what batches keep."""

    connection = BreakableConnection
    _service: "Service"

    def __init__(self, profile: Profile) -> None:
        """Puts the faults in force."""
        self._clock = CloudClock(manual=False)
        self._counts = Counts()
        self._board = FaultBoard(self._counts, self._clock, profile.seed, on_strike=self._tell)
        for fault in profile.faults:
            self._board.add(fault)
        self._doors: ContextVar[Door] = ContextVar("door")

    def attach(self, service: "Service") -> None:
        """Knows the service from here on."""
        self._service = service

    def strikes(self) -> Sequence[Strikes]:
        """How often each fault struck."""
        return [
            Strikes(fault=shown["id"], kind=str(shown["kind"]), count=shown["struck"])
            for shown in self._board.faults()
        ]

    @property
    def door(self) -> Door:
        """The door of the call that this thread or task serves; an empty one outside of calls."""
        return self._doors.get(None) or Door({})

    def _tell(self, fault: Fault) -> None:
        door = self.door
        _log.info("simulated %s (%s) at %s", fault.kind, fault.id, door.facts.get("route", "work"))


def translated(error: CloudError) -> ApiError:
    """The fake cloud's refusal as ours."""
    return ApiError(
        error.code,
        error.message,
        status=error.status,
        details=error.details,
        headers=error.headers,
    )
