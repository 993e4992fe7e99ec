"""How a network output is read as probabilities, for pseudo-labels and for evaluation alike."""

from dataclasses import dataclass

import torch

from learner.losses import full_precision
from learner.parts import NetOut, Scores


@dataclass(frozen=True, slots=True)
class LinearSoftmax:
    """Read the softmax of the logits, in float32 and without gradient."""

    def __call__(self, out: NetOut) -> Scores:
        """Return the scores of z (B,K)."""
        with torch.autocast(out.z.device.type, enabled=False):
            return Scores.of(torch.softmax(full_precision(out.z.detach()), dim=1))
