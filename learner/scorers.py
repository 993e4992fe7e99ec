"""How a network output is read as probabilities, for pseudo-labels and for evaluation alike."""

from dataclasses import dataclass
from typing import Literal

import torch

from learner.centers import COSINE, DOT, PRESENT
from learner.losses import MixtureMode, full_precision, mix_readings
from learner.parts import NetOut, Scores


@dataclass(frozen=True, slots=True)
class LinearSoftmax:
    """Read the softmax of the logits, in float32 and without gradient."""

    def __call__(self, out: NetOut) -> Scores:
        """Return the scores of z (B,K)."""
        with torch.autocast(out.z.device.type, enabled=False):
            return Scores.of(torch.softmax(full_precision(out.z.detach()), dim=1))


@dataclass(frozen=True, slots=True)
class MixtureScorer:
    """Read the mixture of head and class centers (ReMoP): softmax of `losses.mixture_logits`.

    Needs a recipe with `ClassCenters`, whose outputs it finds in aux. confidence "linear" (eq. 3 as printed, the only
    one for mode "literal", which is no distribution): the probabilities are those of softmax(z), handed out in the
    mixture's order, so that the label is the mixture's and the confidence the head's. beta = 1 is `LinearSoftmax`.
    """

    beta: float = 0.5
    temperature: float = 0.1
    mode: MixtureMode = "logit_cos"
    confidence: Literal["mixed", "linear"] = "mixed"

    def __call__(self, out: NetOut) -> Scores:
        """Return the scores of z and the centers' readings, all (B,K)."""
        if self.beta == 1:
            return LinearSoftmax()(out)
        with torch.autocast(out.z.device.type, enabled=False):
            z = full_precision(out.z.detach())
            similarity = out.aux[DOT if self.mode == "official" else COSINE].detach()
            mixed = mix_readings(z, similarity, self.beta, self.temperature, self.mode, out.aux[PRESENT])
            if self.confidence == "mixed":
                return Scores.of(torch.softmax(mixed, dim=1))
            order = mixed.argsort(dim=1, descending=True, stable=True)
            ranked = torch.softmax(z, dim=1).sort(dim=1, descending=True).values
            return Scores(torch.zeros_like(ranked).scatter(1, order, ranked), ranked[:, 0], order[:, 0])
