"""Losses as pure functions of logits, one value per sample, and the means over parts of a batch.

Everything is computed in float32 (float64 stays), outside autocast's precision, from logits: no `log(softmax)`, no
`log(1 - p)`. All of it works for any number of classes K >= 2, and a mean over nothing is exactly 0 with a valid graph.
"""

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
