"""Out-of-fold calibration on frozen features: the temperature of a recipe, of prototypes, and LION's delta.

ALGORITHMS.md 10.7: a head that has seen a hundred labels is far surer than it is right, and then puts the true class
into the bank of complementary labels. How often a reading of faces that nobody has labeled can be right is foretold by
twins, linear heads on the backbone's own features that learn from the labels of the other folds; how sure the recipe is
of such faces, with its adapters, its experts and its mixture, it says itself. The temperature makes the two equal:

    mean over the pool of max_c softmax(log p / T)_c = share of labels that the twins foretell, T >= 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from learner import draws
from learner.losses import full_precision
from learner.parts import NetOut, Scorer, Scores

TEMPERATURE = "temperature"
FOLDS = 4
MIN_LABELS = 24
MIN_PER_CLASS = 3.0
MAX_LABELS = 1000  # more would tell little and cost seconds
_RATE, _MOMENTUM, _STEPS = 1.0, 0.9, 400
_HALVINGS = 6


def folds_of(rows: Tensor, seed: int = 0, folds: int = FOLDS) -> Tensor:
    """Return the fold (L,) of rows (L,) int64: a function of the row, so that a row stays where it is."""
    drawn = draws.uniform(seed, 0, rows.cpu().numpy().astype(np.int64), 47, 1)[:, 0]
    return torch.from_numpy(np.minimum((drawn * folds).astype(np.int64), folds - 1)).to(rows.device)


def enough(classes: Tensor, num_classes: int) -> bool:
    """Tell whether labels (L,) suffice: `MIN_LABELS`, and `MIN_PER_CLASS` a class on average."""
    return len(classes) >= max(MIN_LABELS, MIN_PER_CLASS * num_classes)


def out_of_fold_logits(features: Tensor, classes: Tensor, fold: Tensor, num_classes: int, fit: float) -> Tensor:
    """Return logits (L,K) of every sample by a twin that has not seen its fold.

    Every fold's linear head starts at zero and goes down the mean cross-entropy of the other folds' samples, features
    (L,d) and classes (L,), with momentum, until that is down to `fit`: the earlier it stops, the smoother it is.
    """
    x = full_precision(features)
    seen = torch.stack([fold != f for f in range(FOLDS)]).to(x.dtype)  # (folds, L)
    share = seen / seen.sum(dim=1, keepdim=True).clamp(min=1)
    target = F.one_hot(classes, num_classes).to(x.dtype)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    rate = _RATE / (torch.linalg.matrix_norm(x, 2).square() * share.max())  # half the inverse of the steepest curvature
    weight = x.new_zeros(x.shape[1], FOLDS, num_classes)
    pace = torch.zeros_like(weight)
    logits = x.new_zeros(len(x), FOLDS, num_classes)
    for _ in range(_STEPS):
        log_p = torch.log_softmax(logits, dim=2)
        cost = -(log_p * target[:, None]).sum(dim=2)
        learning = (cost * share.T).sum(dim=0) > fit  # each twin stops by itself: no label reaches its own fold
        if not learning.any():
            break
        residual = (log_p.exp() - target[:, None]) * share.T[:, :, None]
        pace = _MOMENTUM * pace + (x.T @ residual.flatten(1)).view_as(weight)
        weight -= rate * pace * learning[:, None]
        logits = (x @ weight.flatten(1)).view_as(logits)
    return logits[torch.arange(len(x), device=x.device), fold]


def foretold(features: Tensor, classes: Tensor, fold: Tensor, num_classes: int) -> Tensor:
    """Return log-probabilities (L,K) of every sample by the twins that foretell best, at their own temperature.

    The twins are stopped at half of log K, the cross-entropy of knowing nothing, at a quarter, an eighth and so on as
    long as that lowers the cross-entropy of the samples that they have not seen.
    """
    fit, least, best = math.log(num_classes), math.inf, torch.empty(0)
    for _ in range(_HALVINGS):
        fit /= 2
        logits = out_of_fold_logits(features, classes, fold, num_classes, fit)
        log_p = torch.log_softmax(logits / fit_temperature(logits, classes), dim=1)
        loss = float(F.nll_loss(log_p, classes))
        if loss >= least:
            break
        least, best = loss, log_p
    return best


def out_of_fold_cosines(directions: Tensor, classes: Tensor, fold: Tensor, num_classes: int) -> Tensor:
    """Return cosines (L,K) of unit vectors (L,d) to the mean directions of the classes in the other folds.

    A class that the other folds do not have gives -inf.
    """
    member = F.one_hot(classes, num_classes).to(directions.dtype)
    everyone = torch.einsum("lk,ld->kd", member, directions)
    cosines = torch.empty(len(classes), num_classes, dtype=directions.dtype, device=directions.device)
    for f in range(FOLDS):
        here = fold == f
        others = everyone - member[here].T @ directions[here]
        count = member.sum(dim=0) - member[here].sum(dim=0)
        found = directions[here] @ F.normalize(others, dim=1).T
        cosines[here] = found.masked_fill(count == 0, -torch.inf)
    return cosines


def fit_temperature(logits: Tensor, classes: Tensor, low: float = 0.05, high: float = 20.0) -> float:
    """Return the T in [low, high] that minimises the mean cross-entropy of logits / T against classes (L,).

    logits (L,K) may hold -inf; samples whose own class has it are left out.
    """
    z = full_precision(logits).double().cpu()
    y = classes.cpu()
    possible = torch.isfinite(z.gather(1, y[:, None])[:, 0])
    z, y = z[possible], y[possible]
    if not len(z):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(z / float(np.exp(log_temperature)), y))

    found = minimize_scalar(loss, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def match_confidence(log_p: Tensor, share: float, low: float = 1.0, high: float = 20.0) -> float:
    """Return the T in [low, high] at which the mean of max_c softmax(log_p / T)_c over (N,K) equals `share`.

    The mean falls in T, so that bisection finds it; where it is out of reach, the nearer end is returned.
    """
    z = full_precision(log_p).double().cpu()

    def too_sure(temperature: float) -> bool:
        return float(torch.softmax(z / temperature, dim=1).max(dim=1).values.mean()) > share

    if not too_sure(low):
        return low
    if too_sure(high):
        return high
    while high - low > 1e-4 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if too_sure(middle) else (low, middle)
    return high


def fit_delta(p_true: Tensor, limit: float, rate: float) -> float:
    """Return the largest delta <= limit that at most `rate` of the true classes' probabilities (L,) do not exceed."""
    ordered = p_true.double().sort().values
    allowed = int(rate * len(ordered))
    if allowed >= len(ordered):
        return limit
    return float(min(limit, max(1e-6, float(ordered[allowed]) * (1 - 1e-6))))


class Temperature(nn.Module):
    """The temperature of a recipe's scorer, kept with the weights so that a loaded model reads as the trained one did.

    It is no parameter: a keeper sets it. It leaves aux["temperature"] (B,).
    """

    averaged = False

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", torch.ones(()))

    def forward(self, f: Tensor, aux: dict[str, Tensor]) -> None:
        """Leave the temperature for the scorer."""
        aux[TEMPERATURE] = self.value.expand(len(f))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Read another scorer's probabilities at the temperature of the recipe: p^(1/T), to sum one."""

    scorer: Scorer

    def __call__(self, out: NetOut) -> Scores:
        """Return the calibrated scores (B,…); needs a recipe with a `Temperature`."""
        return Scores.of(tempered(self.scorer(out).p, out.aux[TEMPERATURE][:, None]))


def tempered(p: Tensor, temperature: Tensor | float) -> Tensor:
    """Return p^(1/T) scaled to sum one, (B,K): softmax(z / T) where p is softmax(z)."""
    return torch.softmax(p.clamp(min=torch.finfo(p.dtype).tiny).log() / temperature, dim=1)
