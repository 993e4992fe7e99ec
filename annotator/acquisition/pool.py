"""The pool as the scorers see it: plain arrays, aligned by position."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from annotator.acquisition.herding import Herding

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoolView:
    """One moment of the pool: N group representatives, K classes.

    rows (N,) int64 ascending; open (N,) bool, faces without any answer; probs (N, K) float32 calibrated, or None
    without a model; doubt (N,) float64, p_max - p_y of a label that the learner calls ambiguous and that still stands,
    else NaN; dispute (N,) float64 in [0, 1], how evenly people are split over a face, NaN where they are not;
    class_counts (K,) float64, labels by class; herding: the sampled kernel and what the labeled faces cover of it, or
    None without features.
    """

    rows: NDArray[np.int64]
    open: NDArray[np.bool_]
    probs: NDArray[np.float32] | None
    doubt: FloatArray
    dispute: FloatArray
    class_counts: FloatArray
    herding: Herding | None = None
    seed: int = 0
    scored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """(N,) faces whose features are known; empty means all. The others have probabilities that mean nothing yet."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Faces (N,) that a model can speak about."""
        return self.scored if len(self.scored) else np.ones(len(self.rows), dtype=bool)


def nothing(pool: PoolView) -> FloatArray:
    """Return scores (N,) that apply to no face."""
    return np.full(len(pool.rows), np.nan)


def shuffled(rows: NDArray[np.int64], seed: int) -> FloatArray:
    """Return a number in [0, 1) per row that depends on the row and the seed alone.

    Sorting by it is a random permutation that stays the same while faces come and go (SplitMix64 finaliser).
    """
    x = rows.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
