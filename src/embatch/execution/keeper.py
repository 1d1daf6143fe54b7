"""Keeps the leases of this process's steps alive, and knows which of them are lost."""

import logging
import threading
from types import TracebackType
from typing import Self

from embatch.errors import EmbatchError, LeaseLostError
from embatch.journal.leases import LeaseTable

log = logging.getLogger("embatch.execution")


class HeldLease:
    """A lease while its step runs."""

    def __init__(self, keeper: "LeaseKeeper", token: str) -> None:
        self._keeper = keeper
        self.token = token
        self.lost = False
        """Another process took it over: the step is void and should end."""

    def is_held(self) -> bool:
        """The step may go on."""
        return not self.lost

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._keeper.drop(self)


class LeaseKeeper:
    """A thread that renews what is held, several times in each lease's life."""

    def __init__(self, leases: LeaseTable, *, lease_s: float) -> None:
        self._leases = leases
        self._lease_s = lease_s
        self._held: dict[str, HeldLease] = {}
        self._holding = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embatch-leases")

    def hold(self, token: str) -> HeldLease:
        """Keeps a lease until its `with` block ends."""
        lease = HeldLease(self, token)
        with self._holding:
            self._held[token] = lease
        return lease

    def drop(self, lease: HeldLease) -> None:
        """Lets go of a lease whose step has ended."""
        with self._holding:
            self._held.pop(lease.token, None)

    def renew(self) -> None:
        """Renews every lease once; one that is gone is marked as lost."""
        with self._holding:
            held = list(self._held.values())
        for lease in held:
            try:
                self._leases.renew([lease.token], lease_s=self._lease_s)
            except LeaseLostError:
                with self._holding:
                    lease.lost = lease.token in self._held
                if lease.lost:
                    log.warning("a lease was lost while its step ran: the step is given up")
            except EmbatchError as error:
                log.warning("leases could not be renewed: %s", error)

    def start(self) -> None:
        """Begins to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._lease_s / 4):
            self.renew()
