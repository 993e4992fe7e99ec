"""Uncertainty: faces whose two most probable classes are close."""

import numpy as np

from annotator.acquisition.pool import FloatArray, PoolView, nothing


def score(pool: PoolView) -> FloatArray:
    """Score open faces by 1 - (p1 - p2), in [0, 1]. NaN without a model."""
    scores = nothing(pool)
    if pool.probs is None:
        return scores
    applies = pool.open & pool.known
    top = np.partition(pool.probs[applies].astype(np.float64), -2, axis=1)[:, -2:]
    scores[applies] = 1 - (top[:, 1] - top[:, 0])
    return scores
