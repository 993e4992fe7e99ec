"""Thresholds that follow what the model is sure of: FreeMatch's, SoftMatch's and AdaMatch's (ALGORITHMS.md 9)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from learner import losses
from learner.distributions import completed, follow, softmatch_weights
from learner.keepers.alignment import DistributionAlignment
from learner.keepers.base import IdleKeeper
from learner.parts import Clock, Scores, StepContext, Target


class SelfAdaptive(IdleKeeper):
    """FreeMatch: running means of the confidence, tau, of the probabilities, p~ (K,), and of the classes, h~ (K,).

    T_c = tau * p~_c / max p~. All take the step's batch before its targets are made, and start at 1/K.
    """

    name = "self_adaptive"

    def __init__(self, num_classes: int, momentum: float = 0.999) -> None:
        """Start at 1/K."""
        self.momentum = momentum
        self.tau = torch.tensor(1 / num_classes)
        self.mean_p = torch.full((num_classes,), 1 / num_classes)
        self.histogram = self.mean_p.clone()

    def thresholds(self, clock: Clock) -> Tensor:
        """Return T (K,)."""
        return self.tau * self.mean_p / self.mean_p.max()

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Take the batch into the means."""
        scores = ctx.scores["w"]
        p = scores.p
        if len(p):
            shares = F.one_hot(scores.hard, p.shape[1]).to(p.dtype).mean(dim=0)
            self.tau = follow(self.tau.to(p), scores.conf.mean(), self.momentum)
            self.mean_p = follow(self.mean_p.to(p), p.mean(dim=0), self.momentum)
            self.histogram = follow(self.histogram.to(p), shares, self.momentum)
        ctx.logs["freematch/tau"] = self.tau
        ctx.logs["freematch/threshold_min"] = self.thresholds(ctx.clock).min()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the three means."""
        return {
            "tau": self.tau.clone(),
            "mean_p:class0": self.mean_p.clone(),
            "histogram:class0": self.histogram.clone(),
            "known:class0": torch.ones_like(self.mean_p),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved means; a class that they do not know starts at 1/K."""
        self.tau = state["tau"].to(self.tau).clone()
        known = state.get("known:class0")
        self.mean_p = completed(state["mean_p:class0"], known).to(self.mean_p).clone()
        self.histogram = completed(state["histogram:class0"], known).to(self.histogram).clone()


@dataclass(frozen=True, slots=True)
class Fairness:
    """FreeMatch's fairness term over the samples above their threshold, on the strong view."""

    keeper: SelfAdaptive
    name: str = "fairness"
    views: frozenset[str] = frozenset({"s"})
    grad_views: frozenset[str] = frozenset({"s"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, with gradient through the strong view; 0 when no sample is selected."""
        if ctx.target is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe with a targeter")
        return losses.fairness(ctx.outs["s"].z, ctx.target.subset, self.keeper.mean_p, self.keeper.histogram)


class ConfidenceMoments(IdleKeeper):
    """SoftMatch: running mean and variance of the weak views' confidence, aligned first where alignment is on.

    They take the step's batch before its weights are made, and start at 1/K and 1. The variance of one sample is
    undefined: a batch of one leaves it as it was.
    """

    name = "confidence_moments"

    def __init__(self, num_classes: int, alignment: DistributionAlignment | None, momentum: float = 0.999) -> None:
        """Start at mean 1/K, variance 1; the alignment must stand before this keeper in the recipe."""
        self.alignment = alignment
        self.momentum = momentum
        self.mean = torch.tensor(1 / num_classes)
        self.variance = torch.tensor(1.0)

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Take the batch into the moments."""
        scores = ctx.scores["w"]
        conf = scores.conf if self.alignment is None else self.alignment.align(scores.p).max(dim=1).values
        if len(conf):
            self.mean = follow(self.mean.to(conf), conf.mean(), self.momentum)
        if len(conf) > 1:
            self.variance = follow(self.variance.to(conf), conf.var(), self.momentum)
        ctx.logs["softmatch/mean"], ctx.logs["softmatch/variance"] = self.mean, self.variance

    def state_dict(self) -> dict[str, Tensor]:
        """Return mean and variance."""
        return {"mean": self.mean.clone(), "variance": self.variance.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved moments."""
        self.mean = state["mean"].to(self.mean).clone()
        self.variance = state["variance"].to(self.variance).clone()


@dataclass(frozen=True, slots=True)
class SoftWeights:
    """SoftMatch: every sample takes part, weighted by a Gaussian of how far its confidence lies below the mean."""

    keeper: ConfidenceMoments
    num_sigmas: float = 2.0

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return hard (B_u,), weight (B_u,) in (0, 1] and subset (B_u,) bool, those of weight 1."""
        mean, variance = self.keeper.mean.to(scores.conf), self.keeper.variance.to(scores.conf)
        weight = softmatch_weights(scores.conf, mean, variance, self.num_sigmas)
        return Target(scores.hard, weight, scores.conf >= mean)


class RelativeThreshold(IdleKeeper):
    """AdaMatch: tau times the mean confidence in the step's labeled views, the same for every class."""

    name = "relative_threshold"
    reads_labeled = True

    def __init__(self, num_classes: int, threshold: float = 0.95) -> None:
        """Start at tau."""
        self.num_classes = num_classes
        self.threshold = threshold
        self.value = torch.tensor(threshold)

    def thresholds(self, clock: Clock) -> Tensor:
        """Return T (K,), K times the same."""
        return self.value.expand(self.num_classes)

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Read the labeled half of this step."""
        self.value = self.threshold * ctx.scores["l"].conf.mean()
        ctx.logs["adamatch/threshold"] = self.value

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last threshold."""
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved threshold; the next step replaces it."""
        self.value = state["value"].to(self.value).clone()
