"""Delivers what stands in an outbox, in a thread beside the work: at least once, with patience."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from embatch.errors import JournalError
from embatch.observe.attempt import Attempt, Send
from embatch.observe.targets import Way, shown, way_of

log = logging.getLogger("embatch.observe")

CLAIM_S: Final = 120.0
"""An attempt that says nothing for so long is taken for dead, and another process sends."""
POLL_S: Final = 2.0
"""Until the outbox is looked at again, in seconds."""
LOOK_S: Final = 60.0
"""Between two looks for runs that do not move, in seconds."""
DELAYS_S: Final = (5.0, 15.0, 45.0, 135.0, 405.0, 1215.0, *(3600.0,) * 71)
"""Waits between attempts: three days in all, then a message is given up."""
OTHERS_S: Final = 60.0
"""Longest that one failure holds up what else goes to the same target."""
LINGER_S: Final = 10.0
"""How long the end of a run waits for its messages to arrive."""


class Counts(Protocol):
    """What stands in the outbox."""

    @property
    def waiting(self) -> int:
        """Messages that have not arrived and are still tried."""
        ...

    @property
    def next_in_s(self) -> float | None:
        """Seconds until the next attempt; None when nothing waits."""
        ...


class Outbox(Protocol):
    """The journal's outbox, as far as it is needed here."""

    def claim(self, ways: Collection[Way], *, claim_s: float) -> Any | None:
        """The message that is due first."""
        ...

    def delivered(self, sent: Any) -> bool:
        """It arrived."""
        ...

    def gave_up(self, sent: Any, error: str) -> bool:
        """It will never arrive."""
        ...

    def failed(self, sent: Any, error: str, *, again_in_s: float, others_in_s: float = 0.0) -> bool:
        """It did not arrive this time."""
        ...

    def counts(self, run_id: str | None = None, *, ways: Collection[Way] = ...) -> Counts:
        """What waits, of what goes by `ways`."""
        ...


class Courier:
    """One thread that sends what is due. Any number of processes may have one."""

    def __init__(
        self,
        outbox: Outbox,
        senders: Mapping[Way, Send],
        *,
        look: Callable[[], None] = lambda: None,
        delays_s: tuple[float, ...] = DELAYS_S,
        poll_s: float = POLL_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._outbox = outbox
        self._senders = senders
        self._look = look
        self._delays_s = delays_s
        self._poll_s = poll_s
        self._look_s = look_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="embatch-courier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the thread after the attempt in hand, which may take some seconds."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLAIM_S)

    def linger(self, run_id: str | None = None, *, wait_s: float = LINGER_S) -> int:
        """Waits until the messages of a run, or all, have arrived, at most `wait_s` seconds.

        Does not wait for those whose next attempt is later than that. Gives how many have not.
        """
        deadline = time.monotonic() + wait_s
        ways = tuple(self._senders)
        while self._thread.is_alive():
            counts = self._outbox.counts(run_id, ways=ways)
            left = deadline - time.monotonic()
            if not counts.waiting or counts.next_in_s is None or counts.next_in_s > left:
                break
            self._wake.set()
            time.sleep(min(0.05, max(0.0, left)))
        waiting = self._outbox.counts(run_id).waiting
        if waiting:
            whose = "" if run_id is None else f"run {run_id}: "
            command = "embatch worker" if run_id is None else f"embatch resume {run_id}"
            log.warning(
                "%snotifications that have not arrived: %d; the next process that works on this "
                "journal tries on: %s",
                *(whose, waiting, command),
            )
        return waiting

    def _loop(self) -> None:
        look_at = 0.0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + self._look_s
                    self._look()
                while not self._stopping.is_set() and self.deliver_next():
                    pass
            except JournalError as error:
                log.warning("notifications wait: %s", error)
                self._stopping.wait(self._poll_s)
            self._wake.wait(self._poll_s)

    def deliver_next(self) -> bool:
        """Tries the message that is due first. Gives whether there was one."""
        claimed = self._outbox.claim(tuple(self._senders), claim_s=CLAIM_S)
        if claimed is None:
            return False
        send = self._senders[way_of(claimed.target)]
        try:
            attempt = send(claimed.target, claimed.id, claimed.payload)
        except Exception as error:  # noqa: BLE001 - the task's outer edge: it is recorded
            # By its kind alone: its words may hold a URL.
            attempt = Attempt.failed(f"sending broke off ({type(error).__name__})")
        where = shown(claimed.target)
        if attempt.delivered:
            self._outbox.delivered(claimed)
            log.info("run %s: %s is told at %s", claimed.run_id, claimed.kind, where)
            return True
        reason = str(attempt.error)
        if attempt.final or claimed.attempts >= len(self._delays_s):
            self._outbox.gave_up(claimed, reason)
            log.warning(
                "run %s: %s is not told at %s, and not tried again: %s",
                *(claimed.run_id, claimed.kind, where, reason),
            )
            return True
        delay = self._delays_s[claimed.attempts]
        others = min(delay, OTHERS_S) if attempt.unreachable else 0.0
        self._outbox.failed(claimed, reason, again_in_s=delay, others_in_s=others)
        log.warning(
            "run %s: %s did not arrive at %s: %s; again in %.0f s",
            *(claimed.run_id, claimed.kind, where, reason, delay),
        )
        return True
