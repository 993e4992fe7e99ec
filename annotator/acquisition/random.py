"""Random: the faces that keep every estimate honest (DESIGN 5.2)."""

import numpy as np
from numpy.typing import NDArray

from annotator.acquisition.pool import FloatArray, PoolView, nothing, shuffled

_RESERVE_STREAM = 0x5EED


def score(pool: PoolView) -> FloatArray:
    """Score open faces by a fixed shuffle, in [0, 1): the same permutation however often the pool is read."""
    scores = nothing(pool)
    scores[pool.open] = shuffled(pool.rows[pool.open], pool.seed)
    return scores


def reserved(rows: NDArray[np.int64], seed: int, every: int) -> NDArray[np.bool_]:
    """Tell which rows (N,) are kept for validation when the random arm asks for them: one in `every`, by the seed."""
    return shuffled(rows, seed ^ _RESERVE_STREAM) < 1 / every
