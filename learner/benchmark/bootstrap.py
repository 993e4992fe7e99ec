"""Paired bootstrap of two methods over images and split seeds (ALGORITHMS.md 13.4)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["balanced", "overall"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the first method is: mean over seeds, and a 95 % interval; in shares, not percent."""

    mean: float
    low: float
    high: float
    seeds: int


def paired_bootstrap(
    right: NDArray[np.bool_],
    other: NDArray[np.bool_],
    truth: NDArray[np.int64],
    draws: int = 2000,
    seed: int = 0,
    metric: Metric = "balanced",
) -> Difference:
    """Resample images and seeds, the same for both: right, other (S,N) bool by seed and image, truth (N,) int.

    Each draw takes N images and S seeds with replacement and computes mean_s [m(right_s) - m(other_s)], m being
    balanced or overall accuracy of the drawn images; a class that a draw misses is left out of its mean recall. With
    one seed the interval is over images alone.

    Raises:
        ValueError: shapes that do not match, or nothing to compare.
    """
    num_seeds, num = right.shape
    if right.shape != other.shape or truth.shape != (num,) or num == 0 or num_seeds == 0:
        raise ValueError(f"cannot pair {right.shape} with {other.shape} on {truth.shape}")
    rng = np.random.default_rng(seed)
    groups = truth if metric == "balanced" else np.zeros(num, np.int64)
    member = groups[:, None] == np.unique(groups)[None, :]  # (N,C)
    gain = right.astype(np.float32) - other.astype(np.float32)  # (S,N)
    by_class = (gain.T[:, :, None] * member[:, None, :]).reshape(num, -1)  # (N,S*C)
    table = np.concatenate([by_class, member.astype(np.float32)], axis=1)

    def differences(weight: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the gain by draw and seed (R,S) for image weights (R,N)."""
        sums = (weight @ table).astype(np.float64)
        size = sums[:, by_class.shape[1] :]
        gains = sums[:, : by_class.shape[1]].reshape(len(weight), num_seeds, -1)
        present = size > 0
        recall = gains / np.where(present, size, 1)[:, None]
        shares: NDArray[np.float64] = recall.sum(axis=2) / present.sum(axis=1)[:, None]
        return shares

    mean = float(differences(np.ones((1, num), np.float32)).mean())
    found = []
    for start in range(0, draws, 500):
        count = min(500, draws - start)
        weight = rng.multinomial(num, np.full(num, 1 / num), count).astype(np.float32)
        picked = rng.integers(0, num_seeds, (count, num_seeds))
        found.append(np.take_along_axis(differences(weight), picked, axis=1).mean(axis=1))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return Difference(mean, float(low), float(high), num_seeds)
