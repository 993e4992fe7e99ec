"""Ada-CM: adaptive confidence margin (Li et al., CVPR 2022). ALGORITHMS.md 4.

Written from the public code and the abstract. Deviations: pseudo-labels from the EMA model by default; the contrastive
loss of an empty low-confidence subset is 0; candidate sets and "not these" answers have losses of their own, and the
margins, which need a class to check a prediction against, ignore them on purpose.
"""

from typing import Literal

from pydantic import Field

from learner.contrast import NTXentSubset
from learner.keepers.adaptive_margins import AdaptiveMargins, MarginOptions
from learner.keepers.base import KeeperOptions
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ClassThresholds
from learner.terms import ConsistencyCE, SupervisedCE


class AdaCMWeights(KeeperOptions):
    """The weights of the three losses."""

    supervised: float = Field(0.5, ge=0)
    consistency: float = Field(1.0, ge=0)
    contrast: float = Field(0.1, ge=0)


class AdaCMOptions(Options):
    """Options of Ada-CM: see `MarginOptions`; temperature is NT-Xent's; reduction: denominator of L_u."""

    margins: MarginOptions = MarginOptions()
    temperature: float = Field(0.07, gt=0)
    reduction: Literal["all", "selected"] = "all"
    weights: AdaCMWeights = AdaCMWeights()


def adacm(options: AdaCMOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = .5 L_sup + L_u + .1 L_con, pseudo-labels from the mean of two weak views."""
    margins = AdaptiveMargins(num_classes, options.margins)
    weights = options.weights
    return Recipe(
        name="adacm",
        scorer=LinearSoftmax(),
        targeter=ClassThresholds(margins),  # subset I: max p >= T_c
        keepers=[margins],  # T_c = max(.8, .97 mu_c / (1 + exp(-e)))
        losses=[
            (SupervisedCE(), weights.supervised),
            (ConsistencyCE(options.reduction), weights.consistency),  # subset I
            (NTXentSubset(options.temperature), weights.contrast),  # subset II
        ],
        **options.layout(),
    )
