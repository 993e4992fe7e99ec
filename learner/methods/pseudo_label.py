"""Pseudo-Label: train on one's own confident predictions (Lee, ICML workshop 2013). ALGORITHMS.md 9.

The same view is target and input, so the loss can only sharpen. Deviations: predictions below a threshold are left
out, as in public code; candidate sets and "not these" answers in the supervised term.
"""

from typing import Literal

from pydantic import Field

from learner.consistency import Ramp, SelfTraining
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ConfidenceTargeter
from learner.terms import Scheduled, SupervisedCE


class PseudoLabelOptions(Options):
    """threshold: tau; lambda_u rises from 0 over ramp_share of a run, in the loop over ramp_steps of the lifetime."""

    pseudo_source: Literal["student_train", "student_eval", "ema_eval"] = "student_train"
    batchnorm: Literal["update", "freeze"] = "freeze"
    threshold: float = Field(0.95, gt=0, le=1)
    lambda_u: float = Field(1.0, ge=0)
    ramp_share: float = Field(0.4, ge=0, le=1)
    ramp_steps: int = Field(2000, ge=0)


def pseudo_label(options: PseudoLabelOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = CE_l + lambda ramp(t) / B_u * sum of M_i CE(z_w, argmax p_w)."""
    ramp = Ramp(options.ramp_share, options.ramp_steps)
    return Recipe(
        name="pseudo_label",
        scorer=LinearSoftmax(),
        targeter=ConfidenceTargeter(options.threshold),
        losses=[(SupervisedCE(), 1.0), (Scheduled(SelfTraining(), ramp), options.lambda_u)],
        **options.layout(),
    )
