"""Which items of a batch have a vector, as the journal keeps it: for when a part is lost."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embatch.journal.records import BatchRecord


def packed(good: NDArray[np.bool_]) -> bytes:
    """A few bytes for `good`, one flag an item; the same for the same flags."""
    return zlib.compress(np.packbits(good).tobytes())


def are_as_before(batch: BatchRecord, good: NDArray[np.bool_]) -> bool:
    """The items with a vector are those that the batch's lost part held, if one was lost."""
    if batch.part_sha256 is None:
        return True
    if batch.part_good is None:  # an earlier version journaled it
        return batch.part_rows == int(good.sum())
    return batch.part_good == packed(good)


def in_need(batch: BatchRecord) -> Sequence[int]:
    """The items to send again: of a batch whose part was lost, those that it held. The others
    went on without it."""
    if batch.part_sha256 is None or batch.part_good is None:
        return range(batch.items)
    flags = np.frombuffer(zlib.decompress(batch.part_good), dtype=np.uint8)
    items: list[int] = np.flatnonzero(np.unpackbits(flags, count=batch.items)).tolist()
    return items
