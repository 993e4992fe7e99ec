"""The arithmetic of LION's label disambiguation (eqs. 1, 4-6), on plain tensors."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CandidateRule = Literal["union", "paper", "official"]
Similarity = Literal["softmax", "cosine", "softmax_unmasked"]

HALF_LIFE_OF_99 = math.log(0.5) / math.log(0.99)  # 68.97 visits: phi = .99


def decay_of(half_life: float) -> float:
    """Return phi in (0, 1) for a half-life in visits."""
    return float(0.5 ** (1 / half_life))


def label_doubt(p: Tensor, answer: Tensor, clear: float, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compare p (B,K) with people's answers (B,K) bool, one class or several.

    Returns strict (B,) bool, not (max p >= clear and the argmax is in the answer); by_margin (B,) bool, the best answer
    lies more than `margin` below the maximum; and that distance (B,) >= 0.
    """
    top = p.max(dim=1)
    distance = top.values - p.masked_fill(~answer, 0).max(dim=1).values
    agrees = answer.gather(1, top.indices[:, None])[:, 0]
    return ~((top.values >= clear) & agrees), distance > margin, distance


def candidate_set(p: Tensor, answer: Tensor, previous: Tensor, threshold: float, rule: CandidateRule) -> Tensor:
    """Return the candidates (B,K) bool of samples with one given class, answer (B,K) one-hot bool (eq. 4).

    union: argmax, p >= threshold, given class. paper: without the given class. official: argmax and given class, and
    whatever was a candidate before (B,K).
    """
    best = F.one_hot(p.argmax(dim=1), p.shape[1]).bool()
    if rule == "official":
        return best | answer | previous
    found = best | (p >= threshold)
    return found | answer if rule == "union" else found


def enter_and_leave(w: Tensor, candidates: Tensor, previous: Tensor, entry: Tensor, normalise: bool) -> Tensor:
    """Bring w (B,K) from the candidates before (none: a first visit) to those of now: entry (B,K) in, 0 out."""
    moved = torch.where(candidates & ~previous, entry, w) * candidates
    return moved / moved.sum(dim=1, keepdim=True).clamp(min=1e-12) if normalise else moved


def move_weights(
    w: Tensor, cosines: Tensor, usable: Tensor, decay: Tensor | float, similarity: Similarity, temperature: float
) -> Tensor:
    """Move w (B,K) towards the prototypes (eq. 5): decay * w + (1 - decay) * similarity, where usable (B,K) bool.

    usable: candidates whose class has a prototype; other classes keep their weight, and the softmax shares out what is
    left, so that a w that summed to one still does. cosine: the paper's raw cosine. softmax_unmasked: public code,
    where every other class takes part with score 0.
    """
    if similarity == "softmax_unmasked":
        return decay * w + (1 - decay) * torch.softmax((cosines * usable) / temperature, dim=1)
    if similarity == "cosine":
        return torch.where(usable, decay * w + (1 - decay) * cosines, w)
    share = torch.softmax((cosines / temperature).masked_fill(~usable, -1e30), dim=1) * usable
    return torch.where(usable, decay * w + (1 - decay) * share * (w * usable).sum(dim=1, keepdim=True), w)


def visits_to_reach(threshold: float, start: float, similarity: float, decay: float) -> int | None:
    """Return how many visits w needs from `start` to `threshold` under a constant similarity; None for never."""
    if start >= threshold:
        return 0
    if similarity <= threshold:
        return None
    return math.ceil(math.log((similarity - threshold) / (similarity - start)) / math.log(decay))
