"""The board of faults: which of them strike now, counted and drawn from a seed."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from embatch.testing.cloud.clock import CloudClock
from embatch.testing.cloud.faults import Facts, Fault, FaultKind
from embatch.testing.cloud.store import Doc


def draw(*words: object) -> float:
    """A number in [0, 1) that depends on `words` alone."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclass(slots=True)
class _Entry:
    fault: Fault
    set_at: float
    """Clock time when it was put on the board."""
    matched: int = 0
    struck: int = 0


class Keeper(Protocol):
    """Where a board keeps its faults and counts; they live as long as it does."""

    def all(self, kind: str) -> list[Doc]:
        """Every document of a kind, oldest first."""
        ...

    def get(self, kind: str, name: str) -> Doc | None:
        """The document, or None."""
        ...

    def put(self, kind: str, name: str, body: Doc) -> None:
        """Writes a document; a new one gets the next sequence number under "seq"."""
        ...

    def delete(self, kind: str, name: str) -> bool:
        """Removes the document; False when there was none."""
        ...


class FaultBoard:
    """The faults in force. Safe to call from threads; counts survive a restart."""

    def __init__(
        self,
        store: Keeper,
        clock: CloudClock,
        seed: int,
        *,
        on_strike: Callable[[Fault], None] = lambda _: None,
    ) -> None:
        """`on_strike` hears of each strike."""
        self._store = store
        self._on_strike = on_strike
        self._clock = clock
        self.seed = seed
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._made = 0
        self._changed: Callable[[], None] = lambda: None
        for doc in store.all("fault"):
            fault = Fault(**doc["fault"])
            self._entries[fault.id] = _Entry(fault, doc["set_at"], doc["matched"], doc["struck"])
            self._made = max(self._made, doc["seq"])

    def on_change(self, call: Callable[[], None]) -> None:
        """Calls back after every change of the board."""
        self._changed = call

    def add(self, fault: Fault, *, default_id: str | None = None) -> str:
        """Puts a fault on the board and gives its id; the same fault under the same id stays,
        with its counts."""
        with self._lock:
            if not fault.id:
                self._made += 1
                fault = replace(fault, id=default_id or f"fault-{self._made}")
            present = self._entries.get(fault.id)
            if present is None or present.fault != fault:
                self._entries[fault.id] = _Entry(fault, self._clock.now())
                self._keep(self._entries[fault.id])
        self._changed()
        return fault.id

    def clear(self, word: str | None = None) -> None:
        """Takes faults off: all of them, those of one kind, or the one with an id."""
        with self._lock:
            for id_, entry in list(self._entries.items()):
                if word in (None, id_, entry.fault.kind):
                    del self._entries[id_]
                    self._store.delete("fault", id_)
        self._changed()

    def faults(self) -> list[Facts]:
        """What stands on the board, with how often each matched and struck."""
        with self._lock:
            return [
                {**entry.fault.to_json(), "matched": entry.matched, "struck": entry.struck}
                for entry in self._entries.values()
            ]

    def stands(self, id_: str) -> bool:
        """The fault is still on the board."""
        with self._lock:
            return id_ in self._entries

    def strike(self, kind: FaultKind, facts: Facts) -> Fault | None:
        """The first fault of a kind that strikes at these facts, counted; None for none."""
        return next(iter(self._strike(kind, facts, first_only=True)), None)

    def strike_all(self, kinds: Iterable[FaultKind], facts: Facts) -> list[Fault]:
        """Every fault of these kinds that strikes at these facts, each counted."""
        struck: list[Fault] = []
        for kind in kinds:
            struck.extend(self._strike(kind, facts, first_only=False))
        return struck

    def peek(self, kind: FaultKind, facts: Facts) -> list[Fault]:
        """Faults of a kind that fit these facts and are not used up, without counting."""
        with self._lock:
            return [
                entry.fault
                for entry in self._entries.values()
                if entry.fault.kind == kind
                and entry.fault.fits(facts)
                and (entry.fault.times is None or entry.struck < entry.fault.times)
            ]

    def set_at(self, fault: Fault) -> float:
        """Clock time when a fault was put on the board; now for one that is gone."""
        with self._lock:
            entry = self._entries.get(fault.id)
            return entry.set_at if entry else self._clock.now()

    def _strike(self, kind: FaultKind, facts: Facts, *, first_only: bool) -> list[Fault]:
        struck: list[Fault] = []
        with self._lock:
            for entry in self._entries.values():
                fault = entry.fault
                if fault.kind != kind or not fault.fits(facts):
                    continue
                if fault.times is not None and entry.struck >= fault.times:
                    continue
                entry.matched += 1
                spared = draw(self.seed, fault.id, entry.matched) >= fault.probability
                if entry.matched > fault.after and not spared:
                    entry.struck += 1
                    struck.append(fault)
                    self._on_strike(fault)
                self._keep(entry)
                if struck and first_only:
                    break
        return struck

    def _keep(self, entry: _Entry) -> None:
        doc = {
            "fault": entry.fault.to_json(),
            "set_at": entry.set_at,
            "matched": entry.matched,
            "struck": entry.struck,
        }
        old = self._store.get("fault", entry.fault.id)
        if old:
            doc["seq"] = old["seq"]
        self._store.put("fault", entry.fault.id, doc)
