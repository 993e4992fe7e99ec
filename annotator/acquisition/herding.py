"""MaxHerding: cover the features of a pool with as few faces as possible (Bae et al., ECCV 2024).

The generalized coverage of a set S is the mean over faces e of max_{x in S} k(x, e). Picking greedily the face that
adds most is within 1 - 1/e of the best set, needs no radius, and continues from whatever is labeled already.

Deviations: candidates and targets are samples of the pool, so memory is linear in the pool; gains are evaluated lazily
(they only shrink while the set grows), which gives the same picks as evaluating all of them.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from annotator.features import unit

F32 = NDArray[np.float32]
Rows = NDArray[np.int64]

NUM_CANDIDATES = 4096
NUM_TARGETS = 1024


@dataclass(frozen=True, slots=True)
class Herding:
    """A sampled kernel: candidate rows (C,) ascending, kernel (C, E) in [0, 1], covered (E,) by labeled faces."""

    rows: Rows
    kernel: F32
    targets: F32  # (E, d) unit
    gamma: float
    covered: F32
    pool_size: int

    def cover(self, features: F32) -> "Herding":
        """Return the same kernel with the faces of `features` (n, d) covered as well. Features need not be unit."""
        covered = self.covered
        for start in range(0, len(features), 4096):
            similarity = _kernel(unit(features[start : start + 4096]), self.targets, self.gamma)
            covered = np.maximum(covered, similarity.max(axis=0))
        return replace(self, covered=covered)

    def uncovered(self) -> "Herding":
        """Return the same kernel with nothing covered."""
        return replace(self, covered=np.zeros_like(self.covered))

    def pick(self, allowed: NDArray[np.bool_], count: int) -> tuple[NDArray[np.int64], F32]:
        """Choose up to `count` of the allowed candidates (C,) greedily.

        Returns the positions of the picks in order, and for every candidate (C,) the coverage that it would add after
        them (0 for picks).
        """
        covered = self.covered.copy()
        gains = np.maximum(self.kernel - covered, 0).mean(axis=1)
        queue = [(-float(gains[c]), int(c)) for c in np.flatnonzero(allowed)]
        heapq.heapify(queue)
        picks: list[int] = []
        while queue and len(picks) < count:
            _, best = heapq.heappop(queue)
            gain = float(np.maximum(self.kernel[best] - covered, 0).mean())
            if queue and (-gain, best) > queue[0]:
                heapq.heappush(queue, (-gain, best))
                continue
            picks.append(best)
            np.maximum(covered, self.kernel[best], out=covered)
        left = np.maximum(self.kernel - covered, 0).mean(axis=1)
        return np.array(picks, dtype=np.int64), left.astype(np.float32)


def build(
    rows: Rows,
    features: F32 | Callable[[Rows], F32],
    open_: NDArray[np.bool_],
    seed: int,
    num_candidates: int = NUM_CANDIDATES,
    num_targets: int = NUM_TARGETS,
) -> Herding:
    """Sample candidates (from the open faces) and targets (from all) of a pool of at least one row.

    `features` is (N, d), or a function from rows (n,) to (n, d), so that only those of the samples are read.

    The bandwidth is a quarter of the median squared distance between targets: faces at the typical distance cover each
    other by exp(-2) = .14, and results change little around it.
    """
    random = np.random.default_rng(seed)
    choices = np.flatnonzero(open_)
    if len(choices) > num_candidates:
        choices = np.sort(random.choice(choices, num_candidates, replace=False))
    seen = np.arange(len(rows))
    if len(seen) > num_targets:
        seen = np.sort(random.choice(seen, num_targets, replace=False))
    read = features if callable(features) else lambda wanted: features[np.searchsorted(rows, wanted)]
    targets = unit(read(rows[seen]))
    distances = 2 - 2 * (targets @ targets.T)
    typical = float(np.median(distances[np.triu_indices(len(targets), 1)])) if len(targets) > 1 else 1.0
    gamma = 2.0 / max(typical, 1e-6)
    kernel = _kernel(unit(read(rows[choices])), targets, gamma)
    return Herding(rows[choices], kernel, targets, gamma, np.zeros(len(targets), dtype=np.float32), len(rows))


def _kernel(x: F32, targets: F32, gamma: float) -> F32:
    squared = np.maximum(2 - 2 * (x @ targets.T), 0)
    return np.asarray(np.exp(-gamma * squared), dtype=np.float32)
