"""Quota: faces that are likely to be of the classes with the fewest labels."""

import numpy as np

from annotator.acquisition.pool import FloatArray, PoolView, nothing


def deficits(class_counts: FloatArray) -> FloatArray:
    """Return how far each class (K,) is below an equal share of the labels: 0 at or above it, 1 without any label."""
    equal = class_counts.sum() / len(class_counts)
    if equal <= 0:
        return np.zeros(len(class_counts))
    return np.asarray(np.maximum(0.0, 1 - class_counts / equal), dtype=np.float64)


def score(pool: PoolView) -> FloatArray:
    """Score open faces by the probability of rare classes, weighted by how rare they are, in [0, 1].

    Applies to faces with a rare class among their two most probable ones. NaN without a model.
    """
    scores = nothing(pool)
    if pool.probs is None:
        return scores
    missing = deficits(pool.class_counts)
    top_two = np.argpartition(pool.probs, -2, axis=1)[:, -2:]
    applies = pool.open & pool.known & (missing[top_two] > 0).any(axis=1)
    scores[applies] = pool.probs[applies].astype(np.float64) @ missing
    return scores
