"""Results with something wrong in them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from embatch.testing.provider import Job
from embatch.types.results import ResultBlock

Hook = Callable[[Job, list[ResultBlock]], list[ResultBlock]]


def swapping(share: float = 1.0, *, jobs: int = 1, skip: int = 0) -> Hook:
    """Vectors of a share of the rows stand under one another's keys, in some of the jobs."""
    seen: list[str] = []

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label not in seen:
            seen.append(job.label)
        if not skip <= seen.index(job.label) < skip + jobs:
            return blocks
        (block,) = blocks
        count = max(2, round(len(block.keys) * share))
        order = np.arange(len(block.keys))
        order[:count] = np.roll(order[:count], 1)
        return [replace(block, vectors=block.vectors[order])]

    return spoil


def unknown(key: str) -> Hook:
    """One line more, under a key that the batch never sent."""

    def spoil(_job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        return [
            replace(
                block,
                keys=[*block.keys, key],
                vectors=np.concatenate([block.vectors, block.vectors[:1]]),
            )
        ]

    return spoil
