"""Review: labels that contradict the picture, and faces over which people disagree."""

import numpy as np

from annotator.acquisition.pool import FloatArray, PoolView


def score(pool: PoolView) -> FloatArray:
    """Score answered faces: a doubted label by p_max - p_y (LION, ALGORITHMS.md 6.2), a disputed one by how even it is.

    Both are in [0, 1]; NaN for faces that nobody has answered and for labels that nothing speaks against.
    """
    scores = np.fmax(pool.doubt, pool.dispute).astype(np.float64)
    scores[pool.open] = np.nan
    return scores
