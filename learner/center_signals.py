"""What class centers tell about a face: two independent readings of it, and where it lies among the centers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.centers import COSINE, DISTANCE, PRESENT
from learner.keepers.centers import DISTANCES
from learner.losses import full_precision
from learner.parts import NetOut, Scores


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (B,) of distributions (B,K) as a share of ln 2, in [0, 1]; symmetric."""
    mean = (p + q) / 2

    def divergence(a: Tensor) -> Tensor:
        return (torch.xlogy(a, a) - torch.xlogy(a, mean)).sum(dim=1)

    return ((divergence(p) + divergence(q)) / (2 * math.log(2))).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class CenterReader:
    """Columns of ReMoP (ALGORITHMS.md 12); temperature sharpens cosines into a distribution.

    remop_linear, remop_mixed uint8: argmax of the head and of the mixture; remop_feature int8: the nearest center by
    cosine, -1 where no class has one; remop_disagree: linear and feature differ; remop_js: how far softmax(z) and
    softmax(cos / t) are apart, as a share of ln 2, over the classes that have a center; remop_center_margin: gap of the
    two largest cosines, NaN below two centers; remop_cos, remop_dist (B,K): cosine and distance to every center, NaN
    where there is none.
    """

    temperature: float = 0.1

    def __call__(self, out: NetOut, scores: Scores, strong: Scores | None) -> dict[str, Tensor]:
        """Return the columns of one clean view, read in eval mode."""
        z, cosines, present = full_precision(out.z.detach()), out.aux[COSINE], out.aux[PRESENT]
        some = present.any(dim=1)
        linear = Scores.of(torch.softmax(z, dim=1)).hard
        nearest = Scores.of(cosines.masked_fill(~present, -2)).hard
        head = F.softmax(z.masked_fill(~present, -1e30), dim=1)
        near = F.softmax((cosines / self.temperature).masked_fill(~present, -1e30), dim=1)
        top = cosines.masked_fill(~present, -torch.inf).topk(2, dim=1).values
        gap = torch.where(present.sum(dim=1) > 1, top[:, 0] - top[:, 1], torch.nan)
        return {
            "remop_linear": linear.to(torch.uint8),
            "remop_feature": torch.where(some, nearest, -1).to(torch.int8),
            "remop_mixed": scores.hard.to(torch.uint8),
            "remop_disagree": some & (linear != nearest),
            "remop_js": torch.where(some, jensen_shannon(head, near), 0.0).float(),
            "remop_cos": cosines.masked_fill(~present, torch.nan).float(),
            DISTANCES: out.aux[DISTANCE].masked_fill(~present, torch.nan).float(),
            "remop_center_margin": gap.float(),
        }
