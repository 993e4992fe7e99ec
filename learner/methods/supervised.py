"""Supervised: people's answers alone, the baseline that every other method must beat. ALGORITHMS.md 1.

One class and vote shares train by (soft) cross-entropy; candidate sets and "not these" have losses of their own (10.1).
"""

from learner.methods.options import Options
from learner.parts import Recipe
from learner.scorers import LinearSoftmax
from learner.terms import SupervisedCE


class SupervisedOptions(Options):
    """Nothing beyond the shared options."""


def supervised(options: SupervisedOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe; no unlabeled image is read."""
    return Recipe(name="supervised", losses=[(SupervisedCE(), 1.0)], scorer=LinearSoftmax(), **options.layout())
