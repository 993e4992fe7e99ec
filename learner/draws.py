"""Random numbers as a pure function of what they are for, so that resuming needs no generator state.

A draw depends on (seed, step, row, copy, purpose, index) alone: not on the batch it comes in, the device, the thread or
what was drawn before. The mixing function is SplitMix64's finaliser.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shifted = x + _GOLDEN
    shifted = (shifted ^ (shifted >> np.uint64(30))) * _M1
    shifted = (shifted ^ (shifted >> np.uint64(27))) * _M2
    return shifted ^ (shifted >> np.uint64(31))


def key(*parts: int) -> int:
    """Mix integers into one 63-bit key, usable as a seed."""
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state ^ np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return int(state[0] >> np.uint64(1))


def copies(rows: Rows, steps: Rows | None = None) -> Rows:
    """Number the repeats of a row inside a step's batch 0, 1, 2 …, so that each repeat gets its own view.

    rows (B,); steps (B,) where the batches of several steps are given at once.
    """
    if not len(rows):
        return np.zeros(0, np.int64)
    order = np.argsort(rows, kind="stable") if steps is None else np.lexsort((steps, rows))
    ordered = rows[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    if steps is not None:
        at = steps[order]
        starts[1:] |= at[1:] != at[:-1]
    index = np.arange(len(rows))
    first = np.maximum.accumulate(np.where(starts, index, 0))
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = index - first
    return numbers


def uniform(seed: int, step: int | Rows, rows: Rows, purpose: int, count: int) -> NDArray[np.float32]:
    """Draw `count` uniform numbers in [0, 1) per row: (B, count) float32, exact multiples of 2^-24.

    `step` is one for all rows or one each (B,); the numbers are the same either way.
    """
    steps = np.broadcast_to(np.asarray(step, np.int64), rows.shape)
    start = _mix(np.zeros(1, np.uint64) ^ np.uint64(seed & 0xFFFFFFFFFFFFFFFF))
    start = _mix(_mix(start ^ steps.astype(np.uint64)) ^ np.uint64(purpose)) >> np.uint64(1)
    number = copies(rows, None if np.ndim(step) == 0 else steps)
    state = _mix(_mix(start ^ rows.astype(np.uint64)) ^ number.astype(np.uint64))
    index = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + index[None, :])
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def per_class(label: Rows, rows: Rows, counts: Mapping[int, int], seed: int) -> Rows:
    """Draw at most so many of `rows` for each class of label (N,), class after class.

    Draws with one seed are nested: more of a class contain fewer.
    """
    shuffled = np.random.default_rng(seed).permutation(rows)
    return np.concatenate([shuffled[label[shuffled] == index][:count] for index, count in counts.items()])
