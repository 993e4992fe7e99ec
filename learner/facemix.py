"""FaceMix as pure functions: mixing images and answers in pairs, face boxes, the loss and its variants.

SSFER 3.4, equations 8 to 14; ALGORITHMS.md 8.2. Boxes are left, top, right, bottom. Nothing is written in place: in the
public code mixing overwrites the batch, so that what it calls the real images are the mixed ones.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Variant = Literal["L1", "L2", "L3", "L4"]


@dataclass(frozen=True, slots=True)
class Mix:
    """A labeled batch mixed in pairs: x (B_l,…) is share of image i and 1 - share of image partner(i).

    partner (B_l,) int64; share in [0, 1], one for the batch; kappa (B_l,) in [0, 1], how differently the two faces lie.
    """

    x: Tensor
    partner: Tensor
    share: float
    kappa: Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union (B,) in [0, 1] of boxes (B,4), eq. 8; 0 where the union is empty."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    overlap = sides.prod(dim=1)
    union = area(a) + area(b) - overlap
    return torch.where(union > 0, overlap / torch.where(union > 0, union, torch.ones_like(union)), 0.0)


def area(boxes: Tensor) -> Tensor:
    """Return the area (B,) of boxes (B,4); 0 for one that is turned inside out."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def kappa(a: Tensor, b: Tensor) -> Tensor:
    """Return how differently two faces lie in their images, (B,) in [0, 1]: 1 - IoU of boxes (B,4), eq. 9."""
    return 1 - iou(a, b)


def opposite(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Pair a batch with its own reverse: the partner (B,) of i is B-1-i; the middle of an odd batch is its own."""
    return torch.arange(count - 1, -1, -1, device=device)


def mix(x: Tensor, partner: Tensor, share: float) -> Tensor:
    """Return share * x_i + (1 - share) * x_partner(i) for x (B,…) and partner (B,), as a new tensor."""
    return torch.lerp(x[partner], x, share)


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Give each of K classes smoothing / K and the target distribution (B,K) the rest."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1]


def facemix_loss(virtual: Tensor, real: Tensor, partner: Tensor, kappa: Tensor, variant: Variant = "L4") -> Tensor:
    """Join the losses (B,) of mixed images and of real ones by kappa (B,): one value per pair (B,).

    L1 (1-k) L_v + L_i + L_j, L2 L_v + (1-k) (L_i + L_j), L3 k L_v + L_i + L_j, L4 L_v + k (L_i + L_j) (eqs. 11-14; L4
    is eq. 10, the paper's choice). j is the partner (B,) of i.
    """
    pair = real + real[partner]
    if variant == "L1":
        return (1 - kappa) * virtual + pair
    if variant == "L2":
        return virtual + (1 - kappa) * pair
    return kappa * virtual + pair if variant == "L3" else virtual + kappa * pair
