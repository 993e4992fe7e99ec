"""Pi-Model: two views of an image shall be read alike (Laine & Aila, ICLR 2017). ALGORITHMS.md 9.

Deviations: the squared error is taken between a strong view and a weak one without gradient, as in public code;
candidate sets and "not these" answers in the supervised term.
"""

from typing import Literal

from pydantic import Field

from learner.consistency import Ramp, SoftConsistency, SoftTargets
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.terms import Scheduled, SupervisedCE


class PiOptions(Options):
    """lambda_u rises from 0 over ramp_share of a run in benchmarks, over ramp_steps of the lifetime in the loop.

    The student reads both views: read by its average, this would be Mean Teacher.
    """

    pseudo_source: Literal["student_train", "student_eval"] = "student_train"
    batchnorm: Literal["update", "freeze"] = "freeze"
    lambda_u: float = Field(10.0, ge=0)
    ramp_share: float = Field(0.4, ge=0, le=1)
    ramp_steps: int = Field(2000, ge=0)


def pi(options: PiOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = CE_l + lambda ramp(t) MSE(softmax(z_s), softmax(z_w))."""
    ramp = Ramp(options.ramp_share, options.ramp_steps)
    return Recipe(
        name="pi",
        scorer=LinearSoftmax(),
        targeter=SoftTargets(),
        losses=[(SupervisedCE(), 1.0), (Scheduled(SoftConsistency(), ramp), options.lambda_u)],
        **options.layout(),
    )
