"""Losses as pure functions of logits, one value per sample, and the means over parts of a batch.

Everything is computed in float32 (float64 stays), outside autocast's precision, from logits: no `log(softmax)`, no
`log(1 - p)`. All of it works for any number of classes K >= 2, and a mean over nothing is exactly 0 with a valid graph.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["all", "selected"]

_EMPTY = -1e38  # stands for log 0: finite, so that an empty set has a gradient (0) instead of NaN


def full_precision(logits: Tensor) -> Tensor:
    """Return logits as float32, or unchanged when they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B,K) against target distributions (B,K): -sum_c t_c log p_c."""
    log_p = F.log_softmax(full_precision(logits), dim=1)
    return -(targets.to(log_p.dtype) * log_p).sum(dim=1)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B,K) against class indices (B,) int64."""
    return F.cross_entropy(full_precision(logits), classes, reduction="none")


def log_odds_of_each(logits: Tensor) -> Tensor:
    """Log-odds (B,K) of every class against all the others: z_c - LSE over j != c of z_j."""
    z = full_precision(logits)
    num_classes = z.shape[1]
    own = torch.eye(num_classes, dtype=torch.bool, device=z.device)
    others = z[:, None, :].expand(-1, num_classes, -1).masked_fill(own, _EMPTY).logsumexp(dim=2)
    return z - others


def negative_learning(logits: Tensor, complementary: Tensor) -> Tensor:
    """Sum (B,) over the complementary classes (B,K) bool of -log(1 - p_c); 0 where there are none.

    Stable form: -log(1 - p_c) = LSE(z) - LSE_{j != c}(z) = softplus(z_c - LSE_{j != c}(z)), which neither overflows for
    p_c near 1 nor cancels for p_c near 0 (ALGORITHMS.md 6.3).
    """
    cost = F.softplus(log_odds_of_each(logits))
    return (cost * complementary.to(cost.dtype)).sum(dim=1)


def partial_label(logits: Tensor, allowed: Tensor) -> Tensor:
    """Loss (B,) of a candidate set (B,K) bool: -log p(allowed); 0 where every class or none is allowed."""
    z = full_precision(logits)
    inside = z.masked_fill(~allowed, _EMPTY).logsumexp(dim=1)
    outside = z.masked_fill(allowed, _EMPTY).logsumexp(dim=1)
    cost = F.softplus(outside - inside)
    return torch.where(allowed.any(dim=1), cost, torch.zeros_like(cost))


def sigmoid_gap_bce(logits: Tensor, complementary: Tensor) -> Tensor:
    """Official code's negative consistency (B,): mean over c of BCE(max_j sigmoid(z_j) - sigmoid(z_c), bank bit c)."""
    s = torch.sigmoid(full_precision(logits))
    gap = s.max(dim=1, keepdim=True).values - s
    tiny = torch.finfo(gap.dtype).eps
    on = -gap.clamp(min=tiny).log()
    off = -(1 - gap).clamp(min=tiny).log()
    return torch.where(complementary, on, off).mean(dim=1)


def masked_mean(values: Tensor, weight: Tensor, reduction: Reduction = "all") -> Tensor:
    """Weighted mean of values (B,), weight (B,) >= 0 (bool allowed): a scalar, exactly 0 when all weights are.

    reduction: "all" divides by B (FixMatch), "selected" by the number of samples whose weight is positive.
    """
    kept = weight.to(values.dtype)
    total = (values * kept).sum()
    if reduction == "all":
        return total / max(1, len(values))
    return total / torch.count_nonzero(kept).clamp(min=1)


# Adaptive thresholds and contrast (ALGORITHMS.md 3, 4).


def adaptive_margins(mean_confidence: Tensor, epoch: float, floor: float = 0.8, ceiling: float = 0.97) -> Tensor:
    """Ada-CM's margins (K,): T_c = max(floor, ceiling * mu_c / (1 + exp(-epoch))).

    mean_confidence: mu (K,) in [0, 1], the mean confidence in labeled samples of class c that are predicted correctly;
    0 or NaN where there is none, which gives the floor. epoch: counted from 1.
    """
    mean = full_precision(mean_confidence).nan_to_num(0.0)
    return (ceiling / (1 + math.exp(-min(epoch, 700.0))) * mean).clamp(min=floor)


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.07, keep: Tensor | None = None) -> Tensor:
    """Contrast two views of n samples: mean over 2n anchors of LSE_{j != i}(S_ij) - S_{i,pos(i)}, S = u u^T / t.

    a, b (n,d): features of the first and the second view, brought to unit length here; u (2n,d) both of them. Every
    anchor's positive is its other view. keep (n,) bool: the samples that take part, as if the others were not there.
    Scalar >= 0, exactly 0 for one sample or none; gradient through both views.
    """
    if a.shape != b.shape:
        raise ValueError(f"both views need the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    size = len(a)
    some = torch.ones(size, dtype=torch.bool, device=a.device) if keep is None else keep
    with torch.autocast(a.device.type, enabled=False):
        u = F.normalize(full_precision(torch.cat([a, b])), dim=1)
        similarity = u @ u.T / temperature
        positive = torch.cat([similarity.diagonal(size), similarity.diagonal(-size)])
        taking_part = some.repeat(2)
        closed = torch.eye(2 * size, dtype=torch.bool, device=a.device) | ~taking_part
        cost = similarity.masked_fill(closed, _EMPTY).logsumexp(dim=1) - positive
    return masked_mean(cost.where(taking_part, torch.zeros_like(cost)), taking_part, "selected")
