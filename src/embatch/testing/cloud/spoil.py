"""How a job's results are spoiled: which rows a fault takes, and what becomes of their values."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embatch.testing.cloud.board import draw
from embatch.testing.cloud.faults import Fault, FaultKind

_K = FaultKind
RESULT_KINDS: Final = (
    _K.SHUFFLE,
    _K.SWAP_VALUES,
    _K.MISSING_ROWS,
    _K.DOUBLED_ROWS,
    _K.UNKNOWN_ROWS,
    _K.FOREIGN_ROWS,
    _K.ROW_ERROR,
    _K.NULL_VECTOR,
    _K.NULL_VALUE,
    _K.NAN,
    _K.OVERFLOW,
    _K.WRONG_DIMS,
    _K.ZERO_VECTOR,
    _K.USAGE_MISSING,
    _K.DIMS_IGNORED,
    _K.METADATA_MISSING,
    _K.BROKEN_LINE,
    _K.OUTPUT_SHARDS,
    _K.OVER_LONG_REFUSED,
)
"""Kinds that are settled when a job's results are written."""

_VALUE_KINDS: Final = frozenset({_K.NULL_VALUE, _K.NAN, _K.OVERFLOW, _K.ZERO_VECTOR})


@dataclass(frozen=True, slots=True)
class RowAtHand:
    """What a fault may look at to choose a row."""

    index: int
    text: str
    digest: bytes


class Chosen:
    """The rows of one job that one fault takes."""

    def __init__(self, fault: Fault, *, rows: int, seed: int, job: str, all_rows: bool) -> None:
        self.fault = fault
        self._seed = seed
        self._salt = "" if self._permanent else job
        self._marker: str | None = fault.arg("marker")
        self._chance: float | None = fault.arg("chance")
        self.indices = self._pick(rows, job, all_rows=all_rows)

    @property
    def _permanent(self) -> bool:
        return self.fault.kind == _K.ROW_ERROR and not self.fault.arg("transient")

    def _pick(self, rows: int, job: str, *, all_rows: bool) -> frozenset[int] | None:
        fault = self.fault
        if fault.arg("indices") is not None:
            return frozenset(int(at) % rows for at in fault.arg("indices"))
        if fault.arg("count") is not None:
            count = int(fault.arg("count"))
        elif fault.arg("fraction") is not None:
            count = max(1, round(rows * float(fault.arg("fraction"))))
        elif self._marker is not None or self._chance is not None or all_rows:
            return None
        else:
            count = 1
        if fault.kind == _K.SWAP_VALUES:
            count = max(2, count)
        bits = hashlib.blake2b(f"{self._seed} {fault.id} {job}".encode(), digest_size=8).digest()
        picked = np.random.default_rng(int.from_bytes(bits, "little")).choice(
            rows, size=min(count, rows), replace=False
        )
        return frozenset(picked.tolist())

    def takes(self, row: RowAtHand) -> bool:
        """The fault takes this row."""
        if self.indices is not None and row.index not in self.indices:
            return False
        if self._marker is not None and self._marker not in row.text:
            return False
        if self._chance is None:
            return True
        return draw(self._seed, self.fault.id, self._salt, row.digest) < self._chance


class Tallies(Protocol):
    """Where the failures of transient row errors are counted."""

    def count_of(self, what: str, name: str) -> int:
        """One counter."""
        ...


class Spoiler:
    """Every fault that befalls one job's results."""

    def __init__(
        self, faults: Iterable[Fault], *, rows: int, seed: int, job: str, store: Tallies
    ) -> None:
        self.plain = {fault.kind: fault for fault in faults if "marker" not in fault.sheet.args}
        self._store = store
        self._chosen: dict[str, list[Chosen]] = {}
        for fault in faults:
            if "marker" in fault.sheet.args:
                chosen = Chosen(
                    fault, rows=rows, seed=seed, job=job, all_rows=fault.kind == _K.ROW_ERROR
                )
                self._chosen.setdefault(fault.kind, []).append(chosen)
        self.seen: list[tuple[str, str]] = []
        """Failures of transient row errors, to be counted when the job is closed."""
        self.keyless = _K.METADATA_MISSING in self.plain
        self.tokenless = _K.USAGE_MISSING in self.plain
        self.touches_rows = bool(self._chosen)
        self.touches_values = any(
            kind in self._chosen for kind in (*_VALUE_KINDS, _K.WRONG_DIMS, _K.NULL_VECTOR)
        )

    def has(self, *kinds: FaultKind) -> bool:
        """One of these kinds befalls the job."""
        return any(kind in self.plain or kind in self._chosen for kind in kinds)

    def taken(self, kind: FaultKind, row: RowAtHand) -> Fault | None:
        """The fault of a kind that takes this row."""
        for chosen in self._chosen.get(kind, ()):
            if chosen.takes(row):
                return chosen.fault
        return None

    def row_error(self, row: RowAtHand) -> Fault | None:
        """The row error that strikes this row; a transient one lets go after its failures."""
        for chosen in self._chosen.get(_K.ROW_ERROR, ()):
            if not chosen.takes(row):
                continue
            fault = chosen.fault
            if not fault.arg("transient") or fault.arg("chance") is not None:
                return fault
            what, digest = f"row_error {fault.id}", row.digest.hex()
            if self._store.count_of(what, digest) < fault.arg("fails"):
                self.seen.append((what, digest))
                return fault
        return None

    def copies(
        self, row: RowAtHand, spell: Callable[[], bytes], twin: Callable[[], bytes]
    ) -> Iterator[bytes]:
        """What stands there of a row: nothing, what `spell` gives, half of that, or two of them,
        the second perhaps what `twin` gives."""
        if self.taken(_K.MISSING_ROWS, row):
            return
        line = spell()
        yield line[: len(line) // 2] if self.taken(_K.BROKEN_LINE, row) else line
        doubled = self.taken(_K.DOUBLED_ROWS, row)
        if doubled is not None:
            yield line if doubled.arg("identical") else twin()

    def spoil_values(self, values: bytes, row: RowAtHand) -> bytes:
        """The JSON array of a row's vector, as the faults on values leave it."""
        wrong = self.taken(_K.WRONG_DIMS, row)
        if wrong:
            numbers = values[1:-1].split(b",")
            dims = wrong.arg("dims")
            numbers = (numbers * 2)[: len(numbers) - 1 if dims is None else int(dims)]
            values = b"[" + b",".join(numbers) + b"]"
        if self.taken(_K.ZERO_VECTOR, row):
            values = b"[" + b",".join([b"0"] * (values.count(b",") + 1)) + b"]"
        for kind, word in ((_K.NULL_VALUE, b"null"), (_K.NAN, b'"NaN"'), (_K.OVERFLOW, b"1e400")):
            fault = self.taken(kind, row)
            if fault:
                bare = kind == _K.NAN and fault.arg("bare")
                values = _with_word(values, b"NaN" if bare else word)
        return values


def shuffled(rows: int, seed: int | None = None) -> NDArray[np.int64]:
    """Row numbers in another order than theirs, where there are two at least."""
    order = np.random.default_rng(rows if seed is None else (seed, rows)).permutation(rows)
    if rows > 1 and np.array_equal(order, np.arange(rows)):
        order = order[::-1]
    return order


def _with_word(values: bytes, word: bytes) -> bytes:
    numbers = values[1:-1].split(b",")
    numbers[len(numbers) // 2] = word
    return b"[" + b",".join(numbers) + b"]"


def status_of(code: int, message: Any, *, details: bool) -> dict[str, Any]:
    """A google.rpc.Status for a row."""
    status: dict[str, Any] = {"code": code}
    if message is not None:
        status["message"] = message
    if details:
        status["details"] = [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ROW_FAILED"}
        ]
    return status
