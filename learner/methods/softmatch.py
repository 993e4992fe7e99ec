"""SoftMatch: a Gaussian weight instead of a threshold (Chen et al., ICLR 2023). ALGORITHMS.md 9.

Deviations: a batch of one image leaves the variance as it was; pseudo-labels from the EMA model by default; candidate
sets and "not these" answers in the supervised term.
"""

from pydantic import Field

from learner.keepers.alignment import DistributionAlign, DistributionAlignment
from learner.keepers.self_adaptive import ConfidenceMoments, SoftWeights
from learner.methods.options import Options
from learner.parts import Keeper, Recipe, Targeter
from learner.scorers import LinearSoftmax
from learner.terms import ConsistencyCE, SupervisedCE


class SoftMatchOptions(Options):
    """momentum: of the running means; num_sigmas: width of the Gaussian; align: uniform alignment of the weights."""

    momentum: float = Field(0.999, ge=0, lt=1)
    num_sigmas: float = Field(2.0, gt=0)
    align: bool = True
    lambda_u: float = Field(1.0, ge=0)


def softmatch(options: SoftMatchOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: FixMatch with weight exp(-min(conf - mu, 0)^2 / (2 var / n_sigma^2)) in place of the mask."""
    alignment = DistributionAlignment(num_classes, "uniform", options.momentum)
    moments = ConfidenceMoments(num_classes, alignment if options.align else None, options.momentum)
    targeter: Targeter = SoftWeights(moments, options.num_sigmas)
    keepers: list[Keeper] = [moments]
    if options.align:  # decides the weights; the pseudo-labels stay those of the unaligned predictions
        targeter, keepers = DistributionAlign(targeter, alignment, labels="raw"), [alignment, moments]
    return Recipe(
        name="softmatch",
        scorer=LinearSoftmax(),
        targeter=targeter,
        keepers=keepers,
        losses=[(SupervisedCE(), 1.0), (ConsistencyCE(), options.lambda_u)],
        **options.layout(),
    )
