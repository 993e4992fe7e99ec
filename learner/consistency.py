"""Consistency between two readings of an image, without a strong view's cross-entropy (ALGORITHMS.md 9)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner import losses
from learner.parts import Clock, Scores, StepContext, Target


@dataclass(frozen=True, slots=True)
class Ramp:
    """A factor that rises linearly from 0 to 1.

    In the first `share` of a run in benchmarks, in the first `steps` of the lifetime in the annotation loop.
    """

    share: float = 0.4
    steps: int = 2000

    def __call__(self, clock: Clock) -> float:
        """Return the factor in [0, 1]."""
        if clock.ramp_scope == "run":
            return min(1.0, clock.progress / self.share) if self.share else 1.0
        return min(1.0, clock.lifetime_step / self.steps) if self.steps else 1.0


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Take the weak view's probabilities of every sample as they are.

    No threshold tells which of them are confident, so none counts as such: what learns from confident samples alone,
    like ReMoP's centers, gets none from this host.
    """

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return soft (B_u,K), weight 1 for all and subset false for all."""
        return Target(
            scores.hard, torch.ones_like(scores.conf), torch.zeros_like(scores.hard, dtype=torch.bool), scores.p
        )


@dataclass(frozen=True, slots=True)
class SoftConsistency:
    """Mean squared error between softmax(z_s) and the weak view's probabilities (Pi-Model, Mean Teacher).

    Who read the weak view, the student or its average, is the recipe's `pseudo_source`; the student reads the strong
    one always, so that the loss of a student that differs from its teacher is never 0.
    """

    name: str = "consistency"
    views: frozenset[str] = frozenset({"s"})
    grad_views: frozenset[str] = frozenset({"s"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, with gradient through the strong view."""
        if ctx.target is None or ctx.target.soft is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe whose targeter makes soft targets")
        return losses.masked_mean(losses.squared_error(ctx.outs["s"].z, ctx.target.soft), ctx.target.weight)


@dataclass(frozen=True, slots=True)
class SelfTraining:
    """Cross-entropy of the weak view against its own pseudo-label (Pseudo-Label): it can only sharpen."""

    name: str = "self_training"
    views: frozenset[str] = frozenset({"w"})
    grad_views: frozenset[str] = frozenset({"w"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, divided by B_u, with gradient through the weak view."""
        if ctx.target is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe with a targeter")
        ctx.logs[f"{self.name}/selected"] = (ctx.target.weight > 0).float().mean()
        return losses.masked_mean(losses.cross_entropy(ctx.outs["w"].z, ctx.target.hard), ctx.target.weight)
