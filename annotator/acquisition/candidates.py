"""The candidate set: the classes that a person should see first."""

import numpy as np
from numpy.typing import NDArray

LIKELY = 0.3
CLOSE = 0.2


def candidate_set(probs: NDArray[np.float32], likely: float = LIKELY, close: float = CLOSE) -> NDArray[np.int64]:
    """Return bit masks (N,): the most probable class and all with p >= `likely` (LION rule [4], ALGORITHMS.md 6.2).

    The runner-up joins them when it is within `close` of the first: two keys that are nearly even belong side by side.
    """
    if not len(probs):
        return np.zeros(0, dtype=np.int64)
    ranked = np.argsort(-probs, axis=1, kind="stable")
    lines = np.arange(len(probs))
    chosen = probs >= likely
    chosen[lines, ranked[:, 0]] = True
    second = ranked[:, 1]
    near = probs[lines, ranked[:, 0]] - probs[lines, second] < close
    chosen[lines[near], second[near]] = True
    bits = np.left_shift(np.int64(1), np.arange(probs.shape[1], dtype=np.int64))
    return np.asarray(chosen @ bits, dtype=np.int64)
