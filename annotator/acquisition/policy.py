"""The mix: one order out of all arms, in which every beginning holds the arms in their shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.acquisition import coverage, quota, random, review, uncertain
from annotator.acquisition.pool import FloatArray, PoolView
from annotator.records import ARMS, Arm

SCORERS: dict[Arm, Callable[[PoolView], FloatArray]] = {
    "coverage": coverage.score,
    "uncertain": uncertain.score,
    "review": review.score,
    "quota": quota.score,
    "random": random.score,
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """An order: positions (M,) into the pool, each at most once, and the arm (M,) of each, as an index into ARMS."""

    positions: NDArray[np.int64]
    arms: NDArray[np.uint8]


def order_pool(
    pool: PoolView, shares: Mapping[Arm, float], *, has_labels: bool, served: Mapping[Arm, int] | None = None
) -> Mixed:
    """Score the pool and mix the arms. Before the first label coverage alone decides.

    Open faces that no arm wants (no features yet) follow at the end in import order, as coverage.
    """
    wanted: Mapping[Arm, float] = shares if has_labels else {"coverage": 1.0}
    mixed = mix({arm: SCORERS[arm](pool) for arm in ARMS if wanted.get(arm, 0) > 0}, wanted, served)
    left = pool.open.copy()
    left[mixed.positions] = False
    rest = np.flatnonzero(left)
    arms = np.concatenate([mixed.arms, np.full(len(rest), ARMS.index("coverage"), dtype=np.uint8)])
    return Mixed(np.concatenate([mixed.positions, rest]), arms)


def mix(
    scores: Mapping[Arm, FloatArray], shares: Mapping[Arm, float], served: Mapping[Arm, int] | None = None
) -> Mixed:
    """Interleave the arms by their shares.

    Each arm offers its faces by descending score, ties by position; a face that two arms want goes to the one that
    reaches it first. As long as no arm runs out, every beginning of length n holds n * share faces of each arm, give or
    take less than one (Tijdeman's solution of the chairman assignment problem). When an arm runs out the others divide
    its share in proportion.

    `served` counts what each arm has been given lately. An order is made anew after every answer and only its first
    faces are ever shown: without that memory they would always be the same arms', and a small share would never come.
    """
    offers = {arm: _offer(values) for arm, values in scores.items() if shares.get(arm, 0) > 0}
    offers = {arm: offer for arm, offer in offers.items() if offer}
    taken = bytearray(max((len(v) for v in scores.values()), default=0))
    positions: list[int] = []
    arms: list[int] = []
    counts = {arm: (served or {}).get(arm, 0) for arm in offers}
    while offers:
        names = list(offers)
        total = sum(shares[arm] for arm in names)
        exhausted = _serve(counts, {arm: shares[arm] / total for arm in names}, offers, taken, positions, arms)
        del offers[exhausted]
    return Mixed(np.array(positions, dtype=np.int64), np.array(arms, dtype=np.uint8))


def _offer(values: FloatArray) -> list[int]:
    """Return positions as a stack: the best one last."""
    applies = np.flatnonzero(~np.isnan(values))
    ranked: list[int] = applies[np.argsort(-values[applies], kind="stable")][::-1].tolist()
    return ranked


def _serve(
    served: dict[Arm, int],
    shares: Mapping[Arm, float],
    offers: Mapping[Arm, list[int]],
    taken: bytearray,
    positions: list[int],
    arms: list[int],
) -> Arm:
    """Serve the arms until one of them has nothing left; return that one."""
    names = list(shares)
    codes = {arm: ARMS.index(arm) for arm in names}
    slack = 1 / (2 * len(names) - 2) if len(names) > 1 else 0.0
    step = sum(served[arm] for arm in names)
    while True:
        step += 1
        best, deadline = names[0], float("inf")
        for arm, share in shares.items():
            owed = share * step - served[arm]
            if owed >= slack - 1e-9:
                due = (1 - slack - owed) / share
                if due < deadline:
                    best, deadline = arm, due
        stack = offers[best]
        while stack and taken[stack[-1]]:
            stack.pop()
        if not stack:
            return best
        position = stack.pop()
        taken[position] = 1
        served[best] += 1
        positions.append(position)
        arms.append(codes[best])
