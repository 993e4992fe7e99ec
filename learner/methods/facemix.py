"""FaceMix: mixed faces, and real ones by how differently they lie (Song et al., SSFER, 3.4). ALGORITHMS.md 8.2.

Supervised, SSFER's second stage: L = L_v + kappa (L_i + L_j), eq. 10, kappa = 1 - IoU of the two face boxes, eqs. 8-9.
L_i and L_j read the real images; the public code mixes in place and so never sees one, nor does its detector.

Answers: one class and vote shares mix into one soft target. A candidate set and "not these" enter the mixed image's
loss by their share, with the losses that they have alone; no answer is left out. Unlabeled images are not read.

Deviations: boxes are found once and move with crop and flip, where the code detects them in every view; where faces are
all the same crop kappa is 0, and the run says so. smoothing is the code's (the paper has none), on mixed targets only.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from learner.facemix import Variant
from learner.methods.options import Options
from learner.mixing import FaceMixCE, FaceMixer, Overlap
from learner.parts import Recipe
from learner.scorers import LinearSoftmax


class FaceMixOptions(Options):
    """alpha: of Beta(alpha, alpha), one lambda a batch; overlap: where kappa comes from, face boxes or "none" (0).

    variant: L1 to L4 of eqs. 11-14; smoothing: share of a mixed target that all classes divide.
    """

    alpha: float = Field(1.0, gt=0)
    overlap: Overlap = "boxes"
    variant: Variant = "L4"
    smoothing: float = Field(0.1, ge=0, lt=1)


def facemix(options: FaceMixOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe: mean over pairs of CE(z(x~), y~) + kappa (CE(z_i, y_i) + CE(z_j, y_j))."""
    return Recipe(
        name="facemix",
        scorer=LinearSoftmax(),
        mixer=FaceMixer(options.alpha, options.overlap, options.variant),
        losses=[(FaceMixCE(options.variant, options.smoothing), 1.0)],
        **options.layout(),
    )


# Plain Mixup (Zhang et al., ICLR 2018): the mixed images alone.
MIXUP: Mapping[str, Any] = {"overlap": "none"}
