"""Out-of-fold calibration on any host, for recipes on a frozen encoder's features. ALGORITHMS.md 10.7.

The scorer reads every probability at a temperature, for pseudo-labels and for evaluation alike: the one at which the
recipe is as sure of images without answers as linear heads are right out of fold, whatever scorer, experts or centers
it has. With LION, delta and the temperature of its disambiguation are fitted too. On a network whose backbone is
trained, features have seen every label and nothing is out of fold: use it with backbone "features".
"""

from dataclasses import replace

from learner.calibration import TEMPERATURE, Calibrated, Temperature
from learner.keepers.calibrator import Calibrator, CalibratorOptions
from learner.keepers.complement_bank import ComplementBank
from learner.keepers.disambiguator import Disambiguator
from learner.parts import Recipe


def with_calibration(recipe: Recipe, options: CalibratorOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return a copy of a recipe that is read through `Calibrated` and kept so by a `Calibrator`."""
    part = Temperature()
    bank = next((keeper for keeper in recipe.keepers if isinstance(keeper, ComplementBank)), None)
    doubts = next((keeper for keeper in recipe.keepers if isinstance(keeper, Disambiguator)), None)
    scale = recipe.feature_scale if recipe.feature_norm == "l2" else None
    keeper = Calibrator(num_classes, options, part, scale, bank, doubts)
    return replace(
        recipe,
        scorer=Calibrated(recipe.scorer),
        parts={**recipe.parts, TEMPERATURE: part},
        keepers=[*recipe.keepers, keeper],
    )
