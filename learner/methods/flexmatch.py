"""FlexMatch: curriculum pseudo-labeling (Zhang et al., NeurIPS 2021). ALGORITHMS.md 3.

FixMatch with a threshold for each class, T_c = tau M(beta_c); beta_c follows how many images were last read as c with
a confidence of tau.
Deviations: last classes are kept by row and grow old after two rounds; a floor under the thresholds can be set;
pseudo-labels from the EMA model by default; candidate sets and "not these" answers in the supervised term.
"""

from typing import Literal

from pydantic import Field

from learner.keepers.learning_status import LearningStatus, StatusOptions
from learner.losses import ThresholdMapping
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ClassThresholds
from learner.terms import ConsistencyCE, SupervisedCE


class FlexMatchOptions(Options):
    """threshold, thresh_warmup, mapping, t_min, max_age_rounds: see `StatusOptions`; lambda_u, reduction: FixMatch."""

    threshold: float = Field(0.95, gt=0, le=1)
    thresh_warmup: bool = True
    mapping: ThresholdMapping = "convex"
    t_min: float = Field(0.0, ge=0, le=1)
    max_age_rounds: int | None = Field(2, ge=0)
    lambda_u: float = Field(1.0, ge=0)
    reduction: Literal["all", "selected"] = "all"


def flexmatch(options: FlexMatchOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: FixMatch with T_c = tau * M(beta_c) in place of tau."""
    status = LearningStatus(num_classes, StatusOptions(**options.model_dump(include=set(StatusOptions.model_fields))))
    return Recipe(
        name="flexmatch",
        scorer=LinearSoftmax(),
        targeter=ClassThresholds(status),
        keepers=[status],
        losses=[(SupervisedCE(), 1.0), (ConsistencyCE(options.reduction), options.lambda_u)],
        **options.layout(),
    )
