"""The truth of the fake cloud: a vector is a hash of its text, so any swap shows.

A row's numbers are `dims / 2` points on a circle, drawn by a 64-bit mixer from the text's SHA-256
and picked from a table of 65,536 points. The table also holds each point's decimal text, so a
response row is written by copying, and the float32 that a client parses is the table's, bit by bit.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from embatch.testing.cloud.models import MODELS, cut_to_limit

Seeds = NDArray[np.uint64]
Floats = NDArray[np.float32]

_POINTS: Final = 65_536
_DECIMALS: Final = 9
_NUMBER_CHARS: Final = 12
"""Width of every number: "-0.017520320", "0.0185493960"."""
_PAIR_BYTES: Final = 2 * (_NUMBER_CHARS + 1)
_PAIRS_PER_WORD: Final = 4
"""A 64-bit word picks four points, 16 bits each."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def mix(words: Seeds) -> Seeds:
    """Scrambles 64-bit words, one to one (the finalizer of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _Points:
    """A circle's points: their float32 pairs `[65536, 2]` and their JSON text."""

    floats: Floats
    texts: NDArray[np.void]


@lru_cache(maxsize=8)
def _points(radius: float) -> _Points:
    angles = (np.arange(_POINTS) + 0.5) * (2 * np.pi / _POINTS)
    exact = np.round(radius * np.column_stack([np.cos(angles), np.sin(angles)]), _DECIMALS)
    text = b"".join(
        f"{number:.{_DECIMALS}f}".ljust(_NUMBER_CHARS, "0").encode() + b","
        for number in exact.ravel().tolist()
    )
    return _Points(exact.astype(np.float32), np.frombuffer(text, dtype=f"V{_PAIR_BYTES}"))


@lru_cache(maxsize=4096)
def _context_seed(model: str, task_type: str | None, title: str | None) -> int:
    card = MODELS[model]
    if not card.reads_task:
        task_type = title = None
    if task_type == "TASK_TYPE_UNSPECIFIED":
        task_type = None
    words = orjson.dumps([model, task_type, title or None])
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def text_digest(text: str, model: str) -> bytes:
    """SHA-256 of the part of `text` that `model` reads."""
    read, _ = cut_to_limit(text, MODELS[model])
    return hashlib.sha256(read.encode("utf-8", "surrogatepass")).digest()


def row_seed(digest: bytes, model: str, task_type: str | None, title: str | None) -> int:
    """The 64 bits that a row's vector is made of."""
    return int.from_bytes(digest[:8], "little") ^ _context_seed(model, task_type, title)


def _picks(seeds: Seeds, pairs: int) -> NDArray[np.uint16]:
    words = -(-pairs // _PAIRS_PER_WORD)
    steps = np.arange(1, words + 1, dtype=np.uint64) * _GOLDEN
    scrambled = mix(mix(seeds)[:, None] + steps)
    return scrambled.view(np.uint16)[:, :pairs]


def _radius(model: str, dims: int) -> float:
    card = MODELS[model]
    spread_over = dims if card.unit_at_any_dims else card.full_dims
    return float(np.sqrt(2.0 / spread_over))


def make_vectors(seeds: Seeds, model: str, dims: int) -> Floats:
    """Vectors of the seeded rows, float32 `[n, dims]`, C-contiguous."""
    pairs = -(-dims // 2)
    even = 2 * pairs
    picked = np.take(_points(_radius(model, even)).floats, _picks(seeds, pairs), axis=0)
    rows = np.ascontiguousarray(picked.reshape(len(seeds), even)[:, :dims])
    if dims % 2 and MODELS[model].unit_at_any_dims:
        rows /= np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
    return rows


def write_vectors(seeds: Seeds, model: str, dims: int) -> list[bytes]:
    """JSON arrays of the same vectors, one a row; parsed, they give `make_vectors` bit by bit."""
    if dims % 2:
        rows = make_vectors(seeds, model, dims)
        return [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows]
    table = _points(_radius(model, dims)).texts
    cells = np.take(table, _picks(seeds, dims // 2))
    raw = cells.tobytes()
    width = (dims // 2) * _PAIR_BYTES
    return [b"[" + raw[at : at + width - 1] + b"]" for at in range(0, len(raw), width)]


def expected_vectors(
    texts: Sequence[str],
    *,
    model: str = "gemini-embedding-001",
    dims: int | None = None,
    task_type: str | None = None,
    title: str | None = None,
) -> Floats:
    """The vectors that the fake cloud gives for `texts`, float32 `[n, dims]`.

    `model` may carry `models/` or `publishers/google/models/`; `dims` None is the full vector;
    `task_type` in any case. gemini-embedding-001 below 3072 dims is the bare prefix of the full
    vector and shorter than 1; all other models are unit length at every dims.
    """
    bare = model.rsplit("/", 1)[-1]
    task = task_type.upper() if task_type else None
    seeds = [row_seed(text_digest(text, bare), bare, task, title) for text in texts]
    full = MODELS[bare].full_dims
    return make_vectors(np.array(seeds, dtype=np.uint64), bare, dims or full)


def expected_vector(
    text: str,
    *,
    model: str = "gemini-embedding-001",
    dims: int | None = None,
    task_type: str | None = None,
    title: str | None = None,
) -> Floats:
    """The one vector that the fake cloud gives for `text`, float32 `[dims]`."""
    vector: Floats = expected_vectors(
        [text], model=model, dims=dims, task_type=task_type, title=title
    )[0]
    return vector
