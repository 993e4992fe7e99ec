"""EMA-teacher: FixMatch whose pseudo-labels come from an averaged teacher (Song et al., SSFER, 3.3). ALGORITHMS.md 8.3.

Semi-supervised, SSFER's third stage: eq. 1's teacher <- m teacher + (1 - m) student after every step is the run's
`ema`, m .999 without warm-up; it reads the weak view in eval mode. L = L_l + mu_w L_u (eq. 5), eqs. 2 and 4 without the
minus sign that the paper sets before a cross-entropy. threshold and lambda_u are the code's (tau .7, mu_w 5); the paper
has none.

Answers: one class, vote shares, candidate sets and "not these" train in the supervised term, each by its own loss.

Deviations: >= as in the code, > in the paper; the strong view is this project's, not RandAugment m9. Evaluation reads
the teacher; the code reads the second stage's average, which nothing updates any more, and draws other labels.
"""

from typing import Literal

from pydantic import Field

from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ConfidenceTargeter
from learner.terms import ConsistencyCE, SupervisedCE


class EmaTeacherOptions(Options):
    """threshold: tau; lambda_u: mu_w. The teacher is the EMA model; its decay is the run's `ema.decay`."""

    pseudo_source: Literal["ema_eval"] = "ema_eval"
    threshold: float = Field(0.7, gt=0, le=1)
    lambda_u: float = Field(5.0, ge=0)


def ema_teacher(options: EmaTeacherOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = mean CE(z_l, y) + mu_w / B_u * sum of 1[p_i >= tau] CE(z_s,i, argmax of the teacher)."""
    return Recipe(
        name="ema_teacher",
        scorer=LinearSoftmax(),
        targeter=ConfidenceTargeter(options.threshold),
        losses=[(SupervisedCE(), 1.0), (ConsistencyCE(), options.lambda_u)],
        **options.layout(),
    )
