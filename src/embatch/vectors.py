"""Maths on matrices of embeddings: one row a vector, float32, `[n, d]`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embatch.errors import InvalidRequestError

Float32 = NDArray[np.float32]


def _matrix(values: ArrayLike, name: str) -> Float32:
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float32))
    if matrix.ndim != 2:
        raise InvalidRequestError(
            f"{name} has {matrix.ndim} dimensions: give one vector or a matrix of one row each"
        )
    return matrix


def _same_length(a: Float32, b: Float32) -> None:
    if a.shape[1] != b.shape[1]:
        raise InvalidRequestError(
            f"vectors of {a.shape[1]} and {b.shape[1]} values cannot be compared: "
            "embed both with the same model and dimensions"
        )


def normalize(m: ArrayLike) -> Float32:
    """Each row at length 1, as a new `[n, d]` matrix. Rows of zeros stay zeros."""
    matrix = _matrix(m, "m")
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    norms[norms == 0] = 1.0
    unit: Float32 = np.ascontiguousarray(matrix / norms[:, None].astype(np.float32))
    return unit


def truncate(m: ArrayLike, dims: int) -> Float32:
    """The first `dims` values of each row, at length 1 again (Matryoshka truncation)."""
    matrix = _matrix(m, "m")
    if not 1 <= dims <= matrix.shape[1]:
        raise InvalidRequestError(f"dims must be 1..{matrix.shape[1]}, not {dims}")
    return normalize(matrix[:, :dims])


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> Float32:
    """Cosine of every row of `a` `[n, d]` with every row of `b` `[m, d]`, as `[n, m]` in -1..1."""
    left, right = _matrix(a, "a"), _matrix(b, "b")
    _same_length(left, right)
    cosines: Float32 = np.clip(normalize(left) @ normalize(right).T, -1.0, 1.0)
    return cosines


def top_k(matrix: ArrayLike, queries: ArrayLike, k: int = 10) -> tuple[NDArray[np.int64], Float32]:
    """The `k` rows of `matrix` `[n, d]` nearest to each row of `queries` `[q, d]` by cosine.

    Gives row numbers `[q, min(k, n)]`, best first, and their cosines in the same shape.
    Equal cosines are in row order.
    """
    if k < 1:
        raise InvalidRequestError(f"k must be at least 1, not {k}")
    scores = cosine_similarity(queries, matrix)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, scores.shape[1])]
    return order.astype(np.int64), np.take_along_axis(scores, order, axis=1)
