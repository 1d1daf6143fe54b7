"""What of a long audit is done, kept on disk while the service makes it wait."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from embatch.datasets.durable import write_bytes_whole
from embatch.runs.step import Step
from embatch.storage.places import Place
from embatch.types.label import label_hash
from embatch.types.results import Matrix

LEAST_COSINE: Final = 0.99
"""Of the two vectors of one text (spec.md section 4.2)."""
_DIGEST_ROWS: Final = 1024

Places = NDArray[np.int64]
"""Indices of a batch's items, ascending."""


def _nowhere() -> Places:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What embedding some rows of a batch again showed."""

    places: Places = field(default_factory=_nowhere)
    """The rows that were compared."""
    cosines: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, dtype=np.float64))
    """One a row compared."""
    refused: Places = field(default_factory=_nowhere)
    """Rows whose text the interactive API does not take."""

    @property
    def wrong(self) -> Places:
        """The rows whose two vectors differ."""
        return self.places[~(self.cosines >= LEAST_COSINE)]

    @property
    def least(self) -> float | None:
        """The least cosine; None when nothing was compared."""
        return float(self.cosines.min()) if len(self.cosines) else None

    @property
    def looked_at(self) -> Places:
        """The rows compared and the rows refused, ascending."""
        return np.union1d(self.places, self.refused)

    @property
    def facts(self) -> dict[str, Any]:
        """What the journal keeps of it, of a batch that passed."""
        if not len(self.looked_at):
            return {}
        return {"audited": len(self.looked_at), "audit_least": self.least}

    def and_also(self, other: "Audit") -> "Audit":
        """Both as one."""
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places, kind="stable")
        return Audit(
            places=places[order],
            cosines=np.concatenate([self.cosines, other.cosines])[order],
            refused=np.union1d(self.refused, other.refused),
        )


@dataclass(frozen=True, slots=True)
class AuditNotes:
    """One batch's notes. They hold for the very vectors that they were made of, and no others."""

    path: Place

    @classmethod
    def of(cls, step: Step) -> "AuditNotes":
        """The notes of a batch, whether they are there or not."""
        name = f"{label_hash(str(step.batch.label))}.json"
        return cls(step.context.paths.work / "audit" / name)

    def taken_up(self, places: Places, vectors_at: Callable[[Places], Matrix]) -> Audit:
        """What is done of the audit of `places`; nothing when the vectors are others by now."""
        try:
            kept = orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return Audit()
        audit = Audit(
            places=np.array(kept["places"], dtype=np.int64),
            cosines=np.array(kept["cosines"], dtype=np.float64),
            refused=np.array(kept["refused"], dtype=np.int64),
        )
        done = audit.looked_at
        same = np.array_equal(done, places[: len(done)])
        return audit if same and _digest(audit.places, vectors_at) == kept["vectors"] else Audit()

    def put_down(self, audit: Audit, vectors_at: Callable[[Places], Matrix]) -> None:
        """Keeps what is done."""
        if not len(audit.looked_at):
            return
        kept = {
            "places": audit.places.tolist(),
            "cosines": audit.cosines.tolist(),
            "refused": audit.refused.tolist(),
            "vectors": _digest(audit.places, vectors_at),
        }
        write_bytes_whole(self.path, orjson.dumps(kept))


def _digest(places: Places, vectors_at: Callable[[Places], Matrix]) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(places), _DIGEST_ROWS):
        digest.update(np.ascontiguousarray(vectors_at(places[start : start + _DIGEST_ROWS])).data)
    return digest.hexdigest()
