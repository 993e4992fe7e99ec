"""Mean Teacher: the averaged model's reading is the student's target (Tarvainen & Valpola, NeurIPS 2017).

ALGORITHMS.md 9. The student reads the strong view itself. A widespread public code base puts the teacher's logits in
their place, so that its consistency loss is 0 for ever. Deviations: the teacher reads the weak view in eval mode;
candidate sets and "not these" answers in the supervised term.
"""

from typing import Literal

from pydantic import Field

from learner.consistency import Ramp, SoftConsistency, SoftTargets
from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.terms import Scheduled, SupervisedCE


class MeanTeacherOptions(Options):
    """lambda_u rises from 0 over ramp_share of a run in benchmarks, over ramp_steps of the lifetime in the loop.

    The teacher is the EMA model; its decay is the run's `ema.decay`.
    """

    pseudo_source: Literal["ema_eval"] = "ema_eval"
    batchnorm: Literal["update", "freeze"] = "freeze"
    lambda_u: float = Field(50.0, ge=0)
    ramp_share: float = Field(0.4, ge=0, le=1)
    ramp_steps: int = Field(2000, ge=0)


def mean_teacher(options: MeanTeacherOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: L = CE_l + lambda ramp(t) MSE(softmax(z_s), softmax(z_w of the EMA model))."""
    ramp = Ramp(options.ramp_share, options.ramp_steps)
    return Recipe(
        name="mean_teacher",
        scorer=LinearSoftmax(),
        targeter=SoftTargets(),
        losses=[(SupervisedCE(), 1.0), (Scheduled(SoftConsistency(), ramp), options.lambda_u)],
        **options.layout(),
    )
