"""Losses as pure functions of logits, one value per sample, and the means over parts of a batch.

Everything is computed in float32 (float64 stays), outside autocast's precision, from logits: no `log(softmax)`, no
`log(1 - p)`. All of it works for any number of classes K >= 2, and a mean over nothing is exactly 0 with a valid graph.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.gates import topk_gate as topk_gate

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


def learning_status(counts: Tensor, num_unselected: Tensor | int, warmup: bool = True) -> Tensor:
    """FlexMatch's learning status beta (K,) in [0, 1]: n_c / max(max n, n_none), without warm-up n_c / max n.

    counts: n (K,) >= 0, unlabeled images whose last confident pseudo-label was c; num_unselected: n_none, those that
    never had one. 0 everywhere when nothing was selected yet.
    """
    n = full_precision(counts)
    largest = n.max()
    if warmup:
        largest = torch.maximum(largest, torch.as_tensor(num_unselected, dtype=n.dtype, device=n.device))
    return n / largest.clamp(min=1e-12)


ThresholdMapping = Literal["convex", "linear", "low_limit", "concave"]
_MAPPINGS: dict[ThresholdMapping, Callable[[Tensor], Tensor]] = {
    "convex": lambda beta: beta / (2 - beta),
    "linear": lambda beta: (beta + 1) / 2,
    "low_limit": lambda beta: 1 / (2 - beta),
    "concave": lambda beta: ((beta + 1).log() + 0.5) / (math.log(2) + 0.5),
}


def flexmatch_thresholds(
    counts: Tensor,
    num_unselected: Tensor | int,
    threshold: float = 0.95,
    warmup: bool = True,
    mapping: ThresholdMapping = "convex",
    minimum: float = 0.0,
) -> Tensor:
    """FlexMatch's thresholds T (K,): threshold * M(beta_c), at least `minimum`; beta as in `learning_status`.

    mapping: M(b) is b/(2-b) convex, (b+1)/2 linear, 1/(2-b) low_limit, (log(b+1)+.5)/(log 2+.5) concave; M(1) = 1.
    """
    return (threshold * _MAPPINGS[mapping](learning_status(counts, num_unselected, warmup))).clamp(min=minimum)


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


# ReMoP: centers, their geometry, and the mixture of two readings (ALGORITHMS.md 7)

MixtureMode = Literal["logit_cos", "prob", "literal", "official"]


def center_loss(features: Tensor, targets: Tensor, centers: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared distance to the own center: mean_i |f_i - h_{y_i}|^2, a scalar; exactly 0 for an empty batch.

    features (B,d), targets (B,) int64, centers (K,d); weight (B,) leaves samples out (0) or shares them. No 1/2.
    """
    f, h = full_precision(features), full_precision(centers)
    distances = (f - h[targets]).square().sum(dim=1)
    return masked_mean(distances, torch.ones_like(distances) if weight is None else weight, "selected")


def center_cosines(centers: Tensor, present: Tensor | None = None, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (K,K) of centers (K,d) seen from their mean; also which pairs count (K,K) bool, and how many centers.

    present (K,) bool leaves classes without a center out, of the mean as well.
    """
    h = full_precision(centers)
    here = torch.ones(len(h), dtype=torch.bool, device=h.device) if present is None else present
    number = here.sum().to(h.dtype)
    mean = (h * here[:, None]).sum(dim=0) / number.clamp(min=1)
    unit = F.normalize((h - mean) * here[:, None], dim=1, eps=eps)
    pairs = here[:, None] & here[None, :] & ~torch.eye(len(h), dtype=torch.bool, device=h.device)
    return unit @ unit.T, pairs, number


def etf_regularizer(centers: Tensor, nc2_norm: bool = False, present: Tensor | None = None) -> Tensor:
    """Distance of centers (K,d) from a simplex ETF (eq. 8): sum over k != t of (cos(h_k, h_t) + 1/(K-1))^2, a scalar.

    Cosines are taken from the centers' mean, each pair counts twice; 0 exactly at an ETF, which needs d >= K-1.
    nc2_norm: the public code's sqrt(sum over k != t of cos^2 + K/(K-1)^2); its minimum, at the same place, is K/(K-1).
    present (K,) bool: only these classes have a center; fewer than two give 0.
    """
    cosines, pairs, number = center_cosines(centers, present)
    ideal = 1.0 / (number - 1).clamp(min=1)
    if nc2_norm:
        squares = (cosines.square() * pairs).sum() + number * ideal**2
        value = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
    else:
        value = ((cosines + ideal).square() * pairs).sum()
    return value * (number > 1)


def simplex_etf(num_classes: int, dim: int) -> Tensor:
    """Vertices (K,d) of a simplex ETF: unit rows with cosines -1/(K-1), which sum to zero.

    Raises:
        ValueError: fewer than two classes, or d < K-1, where none exists.
    """
    if num_classes < 2 or dim < num_classes - 1:
        raise ValueError(f"a simplex ETF needs K >= 2 and d >= K-1, got K={num_classes}, d={dim}")
    steps = torch.arange(1, num_classes, dtype=torch.float64)  # Helmert's basis of the vectors that sum to zero
    basis = torch.ones(num_classes, num_classes - 1, dtype=torch.float64).triu()
    basis[torch.arange(1, num_classes), torch.arange(num_classes - 1)] = -steps
    basis = basis / (steps * (steps + 1)).sqrt()
    vertices = (num_classes / (num_classes - 1)) ** 0.5 * basis
    return F.pad(vertices, (0, dim - num_classes + 1)).to(torch.get_default_dtype())


def center_similarity(features: Tensor, centers: Tensor, mean: Tensor | None = None) -> Tensor:
    """Cosines (B,K) of features (B,d) to centers (K,d), both seen from the pool mean (d,) where one is given."""
    f, h = full_precision(features), full_precision(centers)
    if mean is not None:
        f, h = f - mean.to(f.dtype), h - mean.to(h.dtype)
    with torch.autocast(f.device.type, enabled=False):
        return F.normalize(f, dim=1) @ F.normalize(h, dim=1).T


def mixture_logits(
    logits: Tensor,
    features: Tensor,
    centers: Tensor,
    beta: float = 0.5,
    temperature: float = 0.1,
    mode: MixtureMode = "logit_cos",
    mean: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Mix the linear reading, logits (B,K), with the similarity of features (B,d) to centers (K,d); (B,K).

    With u_k = cos(f, h_k): "logit_cos" beta z + (1-beta) u / temperature; "official" the same with f.h_k in place of
    u / temperature; "prob" log(beta softmax(z) + (1-beta) softmax(u / temperature)); the softmax of these is the
    mixture. "literal" beta softmax(z) + (1-beta) u, as printed, is no distribution. beta = 1 returns z (literal:
    softmax(z)). mean (d,) is subtracted before a cosine. A class that is not in present (K,) bool has no center: its
    score is the linear one alone.

    Raises:
        ValueError: beta outside [0, 1], no such mode, or a mean with "official".
    """
    if mode == "official" and mean is not None:
        raise ValueError("a pool mean belongs to the cosine; mode 'official' mixes in the plain dot product")
    if mode == "official":
        with torch.autocast(features.device.type, enabled=False):
            similarity = full_precision(features) @ full_precision(centers).T
    else:
        similarity = center_similarity(features, centers, mean)
    return mix_readings(logits, similarity, beta, temperature, mode, present)


def mix_readings(
    logits: Tensor,
    similarity: Tensor,
    beta: float,
    temperature: float,
    mode: MixtureMode,
    present: Tensor | None = None,
) -> Tensor:
    """Do the mixing of `mixture_logits` from similarities (B,K): dot products for "official", cosines otherwise.

    present: (K,) or (B,K) bool.

    Raises:
        ValueError: beta outside [0, 1], or no such mode.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be a share in [0, 1], got {beta}")
    z, u = full_precision(logits), full_precision(similarity)
    here = torch.ones_like(z, dtype=torch.bool) if present is None else present.expand_as(z)
    if mode == "literal":
        p = torch.softmax(z, dim=1)
        return p if beta == 1 else torch.where(here, beta * p + (1 - beta) * u, p)
    if mode in ("logit_cos", "official"):
        scale = 1.0 if mode == "official" else temperature
        return z if beta == 1 else torch.where(here, beta * z + (1 - beta) * u / scale, z)
    if mode != "prob":
        raise ValueError(f"no mixture {mode!r}; there are logit_cos, prob, literal, official")
    if beta == 1:
        return z
    log_p = F.log_softmax(z, dim=1)
    # The feature reading shares out what the linear one gives to the classes that have a center.
    shared = log_p.masked_fill(~here, _EMPTY).logsumexp(dim=1, keepdim=True)
    log_q = F.log_softmax((u / temperature).masked_fill(~here, _EMPTY), dim=1) + shared
    mixed = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta)) if beta > 0 else log_q
    return torch.where(here, mixed, log_p)


# Consistency and fairness (ALGORITHMS.md 9).


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error (B,) of softmax(logits) (B,K) against target distributions (B,K), mean over the classes."""
    p = torch.softmax(full_precision(logits), dim=1)
    return (p - targets.to(p.dtype)).square().mean(dim=1)


def fairness(logits: Tensor, selected: Tensor, mean_p: Tensor, histogram: Tensor) -> Tensor:
    """FreeMatch's fairness: the scalar sum over c of a_c log b_c, a = norm(mean_p / histogram), b the same of a batch.

    logits (B,K) of the strong view; selected (B,) bool; mean_p, histogram (K,): long averages of the weak view's
    probabilities and of its classes' shares. b = norm(mean p_s / hist_s) over the selected samples. A class that no
    selected sample is predicted as has no b_c and is left out: it would add a constant and no gradient.
    """
    p = torch.softmax(full_precision(logits), dim=1)
    weight = selected.to(p.dtype)
    num = weight.sum().clamp(min=1)
    predicted = F.one_hot(p.argmax(dim=1), p.shape[1]) * weight[:, None]
    shares, mean = predicted.sum(dim=0) / num, (p * weight[:, None]).sum(dim=0) / num
    b = _ratio(mean, shares)
    a = _ratio(mean_p.to(p.dtype), histogram.to(p.dtype))
    return (a * torch.where(shares > 0, b, 1.0).log()).sum()


def _ratio(values: Tensor, shares: Tensor) -> Tensor:
    ratio = torch.where(shares > 0, values / shares.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum().clamp(min=1e-12)


# Ambiguous consistency (ALGORITHMS.md 5.2).

PartitionMethod = Literal["cumulative", "official"]


def positive_partition(
    probs: Tensor, threshold: float = 0.9, rule: PartitionMethod = "cumulative", capped: bool = True
) -> Tensor:
    """Split the classes of probs (B,K): the positive ones (B,K) bool, most probable first, ties to the lowest class.

    cumulative: the smallest number m of classes whose probabilities sum to >= threshold (less 1e-6). official: the
    public code's m in {1, 2, 3}, without the class that crosses. At most K-1 where capped, so that one stays negative.
    """
    q, order = full_precision(probs).sort(dim=1, descending=True, stable=True)
    short = (q.cumsum(dim=1) < threshold - 1e-6).sum(dim=1)
    size = short.clamp(1, 3) if rule == "official" else short + 1
    most = q.shape[1] - 1 if capped else q.shape[1]
    first = torch.arange(q.shape[1], device=q.device) < size.clamp(max=most)[:, None]
    return torch.zeros_like(first).scatter(1, order, first)


def partition_weight(probs: Tensor, positive: Tensor) -> Tensor:
    """Public code's weight (B,) in [0, 1] of a partition: log(1 + 50 (a - q_{m+1})) / log(1 + 50 a).

    m: number of positive classes (B,K) bool; q: probs (B,K) in falling order; a: mean of the first m+1. 0 where they
    are all equal.
    """
    q = full_precision(probs).sort(dim=1, descending=True).values
    crossing = positive.sum(dim=1, keepdim=True).clamp(max=q.shape[1] - 1)
    mean = q.cumsum(dim=1).gather(1, crossing) / (crossing + 1)
    weight = torch.log1p(50 * (mean - q.gather(1, crossing)).clamp(min=0)) / torch.log1p(50 * mean)
    return weight[:, 0].clamp(0, 1)


def ambiguous_consistency(logits: Tensor, positive: Tensor, margin: float = 0.0) -> Tensor:
    """Loss (B,) that is small where every positive class (B,K) bool scores above every other one, by the margin.

    softplus(margin + LSE_{k in P}(-s_k) + LSE_{k not in P}(s_k)); exactly 0 without gradient where all classes or none
    are positive. With one positive class and no margin it is the cross-entropy of that class.
    """
    s = full_precision(logits)
    lowest = (-s).masked_fill(~positive, _EMPTY).logsumexp(dim=1)
    highest = s.masked_fill(positive, _EMPTY).logsumexp(dim=1)
    both = positive.any(dim=1) & ~positive.all(dim=1)
    gap = torch.where(both, margin + lowest + highest, torch.zeros_like(lowest))
    return torch.where(both, F.softplus(gap), torch.zeros_like(gap))
