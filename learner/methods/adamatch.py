"""AdaMatch: aligned predictions and a threshold relative to the labeled images (Berthelot et al., ICLR 2022).

ALGORITHMS.md 9. Deviations: no random interpolation of logits, as in public code; pseudo-labels from the EMA model by
default, with the labeled images then read by it too, whatever people answered; candidate sets and "not these" answers
in the supervised term.
"""

from pydantic import Field

from learner.keepers.alignment import DistributionAlign, DistributionAlignment
from learner.keepers.self_adaptive import RelativeThreshold
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ClassThresholds
from learner.terms import ConsistencyCE, SupervisedCE


class AdaMatchOptions(Options):
    """threshold: tau, a share of the labeled images' mean confidence; momentum: of the alignment's means."""

    threshold: float = Field(0.95, gt=0, le=1)
    momentum: float = Field(0.999, ge=0, lt=1)
    lambda_u: float = Field(1.0, ge=0)


def adamatch(options: AdaMatchOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: FixMatch on predictions aligned with the labeled ones, above tau * mean of max p_l."""
    alignment = DistributionAlignment(num_classes, "labeled", options.momentum)
    relative = RelativeThreshold(num_classes, options.threshold)
    return Recipe(
        name="adamatch",
        scorer=LinearSoftmax(),
        targeter=DistributionAlign(ClassThresholds(relative), alignment),
        keepers=[alignment, relative],
        losses=[(SupervisedCE(), 1.0), (ConsistencyCE(), options.lambda_u)],
        **options.layout(),
    )
