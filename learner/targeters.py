"""How scores of the weak view become the targets of the unlabeled half of a step. All comparisons are >=."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from learner.parts import Clock, Scores, Target


@dataclass(frozen=True, slots=True)
class ConfidenceTargeter:
    """FixMatch: hard pseudo-labels where the confidence reaches `threshold` (ALGORITHMS.md 2)."""

    threshold: float = 0.95

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return hard (B_u,), weight (B_u,) 0 or 1 and subset (B_u,) bool, the confident samples."""
        confident = scores.conf >= self.threshold
        return Target(hard=scores.hard, weight=confident.to(scores.p.dtype), subset=confident)


@dataclass(frozen=True, slots=True)
class LionReliability:
    """LION: a sample is reliable when max p_w >= gamma (eq. 7).

    gamma(epoch) = min(cap, threshold + growth * epoch), epochs counted from 1. The paper's gamma is constant; the
    public code lets it grow past 1, where nothing is reliable any more: hence the cap.
    """

    threshold: float = 0.83
    growth: float = 0.0
    cap: float = 0.99

    def gamma(self, clock: Clock) -> float:
        """Return the threshold in force."""
        if not self.growth:
            return self.threshold
        return min(max(self.cap, self.threshold), self.threshold + self.growth * (int(clock.method_epoch) + 1))

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return hard (B_u,), weight (B_u,) 0 or 1 and subset (B_u,) bool, the reliable samples."""
        reliable = scores.conf >= self.gamma(clock)
        return Target(hard=scores.hard, weight=reliable.to(scores.p.dtype), subset=reliable)


class ThresholdKeeper(Protocol):
    """A keeper that has a threshold for every class."""

    def thresholds(self, clock: Clock) -> Tensor:
        """Return the thresholds (K,) in force."""
        ...


@dataclass(frozen=True, slots=True)
class ClassThresholds:
    """Hard pseudo-labels where the confidence reaches the threshold of its own class: max p >= T_{argmax p}.

    FlexMatch, Ada-CM, FreeMatch and AdaMatch differ in the keeper that has the thresholds (ALGORITHMS.md 3, 4, 9).
    """

    keeper: ThresholdKeeper

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return hard (B_u,), weight (B_u,) 0 or 1 and subset (B_u,) bool, the samples above their threshold."""
        confident = scores.conf >= self.keeper.thresholds(clock).to(scores.conf)[scores.hard]
        return Target(hard=scores.hard, weight=confident.to(scores.p.dtype), subset=confident)
