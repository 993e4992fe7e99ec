"""FreeMatch: self-adaptive thresholding and fairness (Wang et al., ICLR 2023). ALGORITHMS.md 9.

Deviations: a class that no selected sample is predicted as is left out of the fairness term, where public code adds a
constant; no clipping of the thresholds; pseudo-labels from the EMA model by default; candidate sets and "not these"
answers in the supervised term.
"""

from pydantic import Field

from learner.keepers.self_adaptive import Fairness, SelfAdaptive
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import ClassThresholds
from learner.terms import ConsistencyCE, SupervisedCE


class FreeMatchOptions(Options):
    """momentum: of the running means; lambda_u, lambda_fairness: weights of the unlabeled terms."""

    momentum: float = Field(0.999, ge=0, lt=1)
    lambda_u: float = Field(1.0, ge=0)
    lambda_fairness: float = Field(0.01, ge=0)


def freematch(options: FreeMatchOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: FixMatch with T_c = tau_t p~_c / max p~, plus .01 times the fairness term."""
    adaptive = SelfAdaptive(num_classes, options.momentum)
    return Recipe(
        name="freematch",
        scorer=LinearSoftmax(),
        targeter=ClassThresholds(adaptive),
        keepers=[adaptive],
        losses=[
            (SupervisedCE(), 1.0),
            (ConsistencyCE(), options.lambda_u),
            (Fairness(adaptive), options.lambda_fairness),
        ],
        **options.layout(),
    )
