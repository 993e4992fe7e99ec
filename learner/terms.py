"""The terms of the objectives: each reads a step's context and returns one scalar, finite for empty subsets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner import losses
from learner.losses import Reduction
from learner.parts import Batch, Clock, LossTerm, StepContext, Target

_NO_VIEWS: frozenset[str] = frozenset()


def _target(ctx: StepContext, name: str) -> Target:
    if ctx.target is None:
        raise ValueError(f"the loss term {name!r} needs a recipe with a targeter")
    return ctx.target


def is_partial(soft: Tensor, allowed: Tensor, given: Tensor) -> Tensor:
    """Tell (B,) bool which samples train on a candidate set: no single class given, target uniform on a part."""
    size = allowed.sum(dim=1, keepdim=True).clamp(min=1)
    uniform = ((soft - allowed.to(soft.dtype) / size).abs() < 1e-4).all(dim=1)
    return (given < 0) & uniform & ~allowed.all(dim=1)


@dataclass(frozen=True, slots=True)
class SupervisedCE:
    """Cross-entropy on people's answers, weighted by `ctx.labeled.weight`, mean over the samples in use (LION eq. 2).

    One class or vote shares: soft cross-entropy. A candidate set: -log p(set). "Not these": negative learning on the
    excluded classes, alone when that is all that was answered.
    """

    name: str = "supervised"
    views: frozenset[str] = _NO_VIEWS
    grad_views: frozenset[str] = _NO_VIEWS

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss of the labeled half; 0 when every weight is."""
        return losses.masked_mean(self.per_sample(ctx), ctx.labeled.weight, "selected")

    @staticmethod
    def per_sample(ctx: StepContext) -> Tensor:
        """Return the unweighted losses (B_l,)."""
        return SupervisedCE.on(ctx.outs["l"].z, ctx)

    @staticmethod
    def on(z: Tensor, ctx: StepContext, who: Tensor | slice = slice(None)) -> Tensor:
        """Return the losses (B,) of logits (B,K) against the answers about the labeled images at positions `who`."""
        batch: Batch = ctx.batch
        soft, given, allowed = ctx.labeled.soft[who], batch.given[who], batch.allowed[who]
        excluded = batch.excluded[who] & ~(soft > 0.5)  # a class that is trained as the answer is not trained away
        candidates = allowed & ~batch.excluded[who]
        bare = (given < 0) & batch.excluded[who].any(dim=1) & (allowed | batch.excluded[who]).all(dim=1)
        untouched = is_partial(soft, allowed, given) | is_partial(soft, candidates, given)
        cost = torch.where(untouched, losses.partial_label(z, candidates), losses.soft_cross_entropy(z, soft)) * (
            ~(bare & untouched)
        ).to(torch.float32)
        denied = losses.negative_learning(z, excluded)
        return cost + denied * (bare | ~untouched).to(denied.dtype)


@dataclass(frozen=True, slots=True)
class ConsistencyCE:
    """Cross-entropy of the strong view against the weak view's pseudo-label (FixMatch; LION eq. 8).

    reduction: "all" divides by B_u, "selected" by the number of samples with weight (LION paper).
    """

    reduction: Reduction = "all"
    name: str = "consistency"
    views: frozenset[str] = frozenset({"s"})
    grad_views: frozenset[str] = frozenset({"s"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss; 0 when no sample passes the threshold."""
        target = _target(ctx, self.name)
        ctx.logs[f"{self.name}/selected"] = (target.weight > 0).float().mean()
        return losses.masked_mean(losses.cross_entropy(ctx.outs["s"].z, target.hard), target.weight, self.reduction)


@dataclass(frozen=True, slots=True)
class NegativeLearning:
    """LION eq. 10 (with the log it lacks): mean over unreliable samples of sum over CLB of -log(1 - p_w,c)."""

    name: str = "negative_learning"
    views: frozenset[str] = frozenset({"w"})
    grad_views: frozenset[str] = frozenset({"w"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, with gradient through the weak view."""
        target = _target(ctx, self.name)
        return _negative_mean(losses.negative_learning, ctx.outs["w"].z, target)


@dataclass(frozen=True, slots=True)
class NegativeConsistency:
    """LION eq. 11: mean over unreliable samples of sum over CLB of -log(1 - p_s,c).

    official: the public code's BCE between sigmoid gaps and bank bits, averaged over all classes.
    """

    official: bool = False
    name: str = "negative_consistency"
    views: frozenset[str] = frozenset({"s"})
    grad_views: frozenset[str] = frozenset({"s"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, with gradient through the strong view."""
        target = _target(ctx, self.name)
        form = losses.sigmoid_gap_bce if self.official else losses.negative_learning
        return _negative_mean(form, ctx.outs["s"].z, target)


def _negative_mean(form: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Target) -> Tensor:
    if target.negative is None:
        raise ValueError("negative learning needs a recipe with a ComplementBank keeper")
    return losses.masked_mean(form(logits, target.negative), ~target.subset, "selected")


@dataclass(frozen=True)
class Scheduled:
    """A term times a factor that depends on the clock, beside its constant weight in the recipe."""

    term: LossTerm
    factor: Callable[[Clock], float]

    @property
    def name(self) -> str:
        """The wrapped term's name."""
        return self.term.name

    @property
    def views(self) -> frozenset[str]:
        """The wrapped term's views."""
        return self.term.views

    @property
    def grad_views(self) -> frozenset[str]:
        """The wrapped term's views with gradient."""
        return self.term.grad_views

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return factor(clock) times the term."""
        return self.factor(ctx.clock) * self.term(ctx)
