"""Coverage: faces unlike any labeled one, in the order in which they cover the pool (`herding`)."""

import numpy as np

from annotator.acquisition.pool import FloatArray, PoolView, nothing, shuffled

NUM_PICKS = 384
"""Greedy picks per reading. Every answer makes a new reading, so later ones are rarely reached."""


def score(pool: PoolView) -> FloatArray:
    """Score open faces by what they would add to the coverage. NaN without features.

    Above 1 for greedy picks, in [0, 1] what the other candidates would still add after them, below 0 a fixed shuffle of
    the faces outside the candidate sample.
    """
    scores = nothing(pool)
    if pool.herding is None:
        return scores
    scores[pool.open] = shuffled(pool.rows[pool.open], pool.seed) - 1
    where = np.searchsorted(pool.rows, pool.herding.rows)
    where = np.minimum(where, max(len(pool.rows) - 1, 0))
    allowed = (pool.rows[where] == pool.herding.rows) & pool.open[where] if len(pool.rows) else np.zeros(0, dtype=bool)
    picks, left = pool.herding.pick(allowed, NUM_PICKS)
    scores[where[allowed]] = left[allowed]
    scores[where[picks]] = 1 + np.arange(len(picks), 0, -1)
    return scores
