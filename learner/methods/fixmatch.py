"""FixMatch: consistency and confidence (Sohn et al., NeurIPS 2020). ALGORITHMS.md 2.

Eq. 3 is the supervised term, eq. 4 the unlabeled one: hard pseudo-labels above tau, divided by all B_u samples.
Deviations: candidate sets and "not these" answers in the supervised term; pseudo-labels from the EMA model by default.
"""

from typing import Literal

from pydantic import Field

from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ConfidenceTargeter
from learner.terms import ConsistencyCE, SupervisedCE


class FixMatchOptions(Options):
    """threshold: tau; lambda_u: weight of the unlabeled term; reduction: its denominator, B_u or the selected."""

    threshold: float = Field(0.95, gt=0, le=1)
    lambda_u: float = Field(1.0, ge=0)
    reduction: Literal["all", "selected"] = "all"


def fixmatch(options: FixMatchOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = mean CE(z_l, y) + lambda_u / B_u * sum of M_i CE(z_s, argmax p_w)."""
    return Recipe(
        name="fixmatch",
        scorer=LinearSoftmax(),
        targeter=ConfidenceTargeter(options.threshold),
        losses=[(SupervisedCE(), 1.0), (ConsistencyCE(options.reduction), options.lambda_u)],
        **options.layout(),
    )
