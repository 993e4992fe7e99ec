"""ReMoP's two losses: features keep close to their class's center, and the centers keep apart (ALGORITHMS.md 7)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner import losses
from learner.centers import ClassCenters
from learner.parts import StepContext

CenterReduction = Literal["joint", "separate"]


@dataclass(frozen=True, slots=True)
class Members:
    """Whose features belong to a center: features (n,d), classes (n,) int64, and which count, keep (n,) bool."""

    features: Tensor
    classes: Tensor
    keep: Tensor


def labeled_members(ctx: StepContext) -> Members:
    """Take the labeled images that train on one class, by that class.

    Candidate sets, bare "not these" and vote shares name no single class; they are left out on purpose.
    """
    soft = ctx.labeled.soft.max(dim=1)
    return Members(ctx.outs["l"].f, soft.indices, (soft.values > 1 - 1e-6) & (ctx.labeled.weight > 0))


def confident_members(ctx: StepContext) -> Members | None:
    """Take the strong views of confident unlabeled images, by their pseudo-label; None where the recipe has none."""
    if ctx.target is None or "s" not in ctx.outs:
        return None
    return Members(ctx.outs["s"].f, ctx.target.hard, ctx.target.subset)


@dataclass(frozen=True)
class CenterLoss:
    """L_c: squared distance of features to the center of their class, mean over the samples in use, no 1/2.

    In use are labeled images with one class (candidate sets, "not these" and votes are ignored on purpose: they name no
    center) and the strong views of confident unlabeled images by their pseudo-label, each where its class has a center.
    reduction: one mean over both kinds, or (public code, but 0 instead of NaN for none) the sum of a mean over each.
    unlabeled: False on hosts that make no pseudo-labels or no strong view. Trains features and centers, the gradient of
    the centers times center_scale.
    """

    centers: ClassCenters
    reduction: CenterReduction = "joint"
    unlabeled: bool = True
    center_scale: float = 1.0
    name: str = "center"

    @property
    def views(self) -> frozenset[str]:
        """The strong view, where unlabeled images take part."""
        return frozenset({"s"} if self.unlabeled else ())

    @property
    def grad_views(self) -> frozenset[str]:
        """The same."""
        return self.views

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss; 0 when no sample is in use."""
        parts = [labeled_members(ctx)]
        confident = confident_members(ctx) if self.unlabeled else None
        parts += [] if confident is None else [confident]
        if self.reduction == "separate":
            return torch.stack([self._mean([part]) for part in parts]).sum()
        return self._mean(parts)

    def _mean(self, parts: list[Members]) -> Tensor:
        features, classes = torch.cat([p.features for p in parts]), torch.cat([p.classes for p in parts])
        keep = torch.cat([p.keep for p in parts]) & self.centers.is_set[classes]
        still = self.centers.vectors.detach()
        centers = still + self.center_scale * (self.centers.vectors - still)  # the same values, another gradient
        return losses.center_loss(features, classes, centers, keep)


@dataclass(frozen=True)
class NCReg:
    """L_reg (eq. 8): distance of the centers from a simplex ETF; nc2_norm: the public code's form. Trains centers."""

    centers: ClassCenters
    nc2_norm: bool = False
    name: str = "center_regularizer"
    views: frozenset[str] = frozenset()
    grad_views: frozenset[str] = frozenset()

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss; 0 while fewer than two classes have a center."""
        return losses.etf_regularizer(self.centers.vectors, self.nc2_norm, self.centers.is_set)
