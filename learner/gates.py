"""How experts are weighted and their outputs joined: the arithmetic of LEAF's gates (ALGORITHMS.md 5.1)."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GateActivation = Literal["none", "softplus"]
Combine = Literal["sum", "logexp"]

LOG_FLOOR = math.log(2.0**-52)  # the public code writes 2.2e-16 in place of an exact zero before it takes the log
_CLOSED = -1e38  # stands for log 0: finite, so that a closed gate has a gradient (0) instead of NaN


def topk_gate(scores: Tensor, k: int, activation: GateActivation = "none", switch: bool = False) -> Tensor:
    """Weight n experts by their scores (B,n): g_j = exp(a_j) / sum over T of exp(a_t) for j in T, else 0.

    T: the k largest scores, ties to the lowest index. a: the scores, or their softplus, with which g_j is
    (1 + e^s_j) / sum over T of (1 + e^s_t). Every row has k positive weights that sum to one; float32 at least. With
    k = 1 the only weight is the constant 1 and the scores get no gradient. switch: the softmax runs over all n experts
    and the k weights are left as they are, which keeps the gradient alive.

    Raises:
        ValueError: k does not lie in 1..n.
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"a gate over {scores.shape[1]} experts cannot choose {k}")
    s = scores.to(torch.promote_types(scores.dtype, torch.float32))
    chosen = s.detach().argsort(dim=1, descending=True, stable=True)[:, :k]
    taken = torch.zeros_like(s, dtype=torch.bool).scatter_(1, chosen, True)
    a = F.softplus(s) if activation == "softplus" else s
    if switch:
        return torch.softmax(a, dim=1) * taken
    return torch.softmax(a.masked_fill(~taken, _CLOSED), dim=1)


def gate_entropy(gate: Tensor) -> Tensor:
    """Entropy (B,) in nats of gate weights (B,n); at most ln k for k open gates."""
    entropy: Tensor = torch.special.entr(gate).sum(dim=1)
    return entropy


def importance_spread(gate: Tensor) -> Tensor:
    """Squared coefficient of variation (scalar >= 0) of the experts' importance I_j = sum over the batch of g_j.

    CV^2 = var(I) / (mean(I)^2 + 1e-10) with the unbiased variance; gate (B,n). 0 for a single expert.
    """
    importance = gate.sum(dim=0)
    if len(importance) < 2:
        return importance.sum() * 0
    return importance.var() / (importance.mean() ** 2 + 1e-10)


def combine_experts(outputs: Tensor, gate: Tensor, combine: Combine = "sum") -> Tensor:
    """Join the experts' outputs (B,n,D) by gate weights (B,n) into (B,D).

    sum: sum_j g_j o_j. logexp: log sum_j g_j exp(o_j) in a form that cannot overflow, not below ln 2.2e-16.
    """
    if combine == "sum":
        return torch.einsum("bn,bnd->bd", gate, outputs)
    o = outputs.to(gate.dtype)
    log_gate = gate.clamp(min=1e-30).log().masked_fill(gate == 0, _CLOSED)
    return (o + log_gate[:, :, None]).logsumexp(dim=1).clamp(min=LOG_FLOOR)
