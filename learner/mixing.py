"""What trains on mixed images: the mixer that pairs a labeled batch, and the loss on them (ALGORITHMS.md 8.2)."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from learner import facemix, losses
from learner.boxes import Boxes, same_crop
from learner.facemix import Mix, Variant
from learner.parts import Batch, StepContext
from learner.terms import SupervisedCE

Overlap = Literal["boxes", "none"]


@dataclass
class FaceMixer:
    """Mixes every labeled image with the one at the opposite place of its batch; lambda ~ Beta(alpha, alpha) per batch.

    The middle image of an odd batch is its own partner: it stays as it is, with kappa 0. overlap "boxes": kappa is
    1 - IoU of the two face boxes, as they lie in the two views. An image whose box is not known, or was cropped out of
    the view, counts with `boxes.FALLBACK`. "none": kappa is 0, plain Mixup. The same holds for a run without boxes,
    and for one whose faces all have the same box: then two views differ by their own random crops alone.
    """

    alpha: float = 1.0
    overlap: Overlap = "boxes"
    variant: Variant = "L4"
    active: bool = field(default=True, init=False)

    @property
    def needs_real(self) -> bool:
        """Whether the loss reads the images as they were before mixing: L4 does not where kappa is 0."""
        return self.variant != "L4" or (self.active and self.overlap == "boxes")

    def start_run(self, boxes: Boxes | None) -> str | None:
        """Look at the boxes (L,4) of the labeled images; return what a person should know, if there is anything."""
        self.active = True
        if self.overlap == "none":
            return None
        if boxes is None or not np.isfinite(boxes).all(axis=1).any():
            reason = "no face box of a labeled image is known"
        elif same_crop(boxes):
            reason = "every labeled image is the same crop of a face"
        else:
            return None
        self.active = False
        return f"FaceMix is inactive: {reason}; kappa is 0, the mixed images train as with Mixup"

    def __call__(self, batch: Batch, seed: int) -> Mix:
        """Mix `batch.x` (B,…) in pairs; lambda depends on the seed alone."""
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        partner = facemix.opposite(len(batch.x), batch.x.device)
        kappa = torch.zeros(len(batch.x), device=batch.x.device)
        if self.active and self.overlap == "boxes" and batch.boxes is not None:
            kappa = facemix.kappa(batch.boxes, batch.boxes[partner])
        return Mix(facemix.mix(batch.x, partner, share), partner, share, kappa)


@dataclass(frozen=True, slots=True)
class FaceMixCE:
    """The FaceMix loss (eqs. 10-14): mean over the pairs of the joined losses of the mixed and the real images.

    The mixed image trains on lambda of its own answer and 1 - lambda of its partner's, each by the loss that such an
    answer has in `SupervisedCE`; for classes and vote shares that is the soft cross-entropy against the mixed target.
    smoothing: label smoothing of that target; real images train on answers as they are. A pair counts where both have
    weight.
    """

    variant: Variant = "L4"
    smoothing: float = 0.1
    name: str = "facemix"
    views: frozenset[str] = frozenset()
    grad_views: frozenset[str] = frozenset()

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss."""
        mix = ctx.batch.mix
        if mix is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe with a mixer")
        virtual, pairs = self._virtual(ctx, mix), ctx.labeled.weight * ctx.labeled.weight[mix.partner]
        ctx.logs[f"{self.name}/kappa"] = mix.kappa.mean()
        ctx.logs[f"{self.name}/virtual"] = losses.masked_mean(virtual.detach(), pairs, "selected")
        if "l" not in ctx.outs:  # read by nobody: L4 with kappa 0
            return losses.masked_mean(virtual, pairs, "selected")
        real = SupervisedCE.per_sample(ctx)
        joined = facemix.facemix_loss(virtual, real, mix.partner, mix.kappa, self.variant)
        return losses.masked_mean(joined, pairs, "selected")

    def _virtual(self, ctx: StepContext, mix: Mix) -> Tensor:
        """Return the losses (B,) of the mixed images."""
        z = ctx.outs["m"].z
        own, other = (SupervisedCE.on(z, ctx, who) for who in (slice(None), mix.partner))
        cost = mix.share * own + (1 - mix.share) * other
        if not self.smoothing:
            return cost
        spread = -torch.log_softmax(losses.full_precision(z), dim=1).mean(dim=1)
        return (1 - self.smoothing) * cost + self.smoothing * spread
