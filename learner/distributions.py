"""Distributions over classes that move with training, and aligning predictions with them (ALGORITHMS.md 9)."""

import torch
from torch import Tensor


def follow(average: Tensor, observed: Tensor, momentum: float) -> Tensor:
    """Move an average towards an observation: momentum * average + (1 - momentum) * observed."""
    return momentum * average + (1 - momentum) * observed


def align_distribution(p: Tensor, model: Tensor, target: Tensor, tiny: float = 1e-6) -> Tensor:
    """Align predictions p (B,K) with a target: p' proportional to p * (target + tiny) / (model + tiny), rows sum to 1.

    model (K,): the mean of what the model predicts; target (K,): what it should predict on average.
    """
    moved = p * ((target + tiny) / (model + tiny))
    return moved / moved.sum(dim=1, keepdim=True)


def softmatch_weights(conf: Tensor, mean: Tensor, variance: Tensor, num_sigmas: float = 2.0) -> Tensor:
    """SoftMatch's weights (B,) in (0, 1]: exp(-min(conf - mean, 0)^2 / (2 variance / num_sigmas^2)), conf (B,)."""
    below = (conf - mean).clamp(max=0)
    return torch.exp(-below.square() * num_sigmas**2 / (2 * variance.clamp(min=1e-12)))


def completed(distribution: Tensor, known: Tensor | None = None) -> Tensor:
    """Return a saved distribution (K,) for the present classes: a new class starts at 1/K, the whole sums to one.

    known (K,): saved as ones, so that a class that was not there reads 0 (`learner.state.permute_classes`); without it,
    a class at 0 counts as new. A known class may have come down to exactly 0, which is kept.
    """
    there = distribution > 0 if known is None else known > 0
    if bool(there.all()) and abs(float(distribution.sum()) - 1) < 1e-3:
        return distribution
    filled = torch.where(there, distribution, 1 / len(distribution))
    return filled / filled.sum()
