"""ReMoP: regularized mixture of predictions, on any host (Li et al., IJCAI 2025). ALGORITHMS.md 7.

Class centers read every face a second time (eqs. 4-5). The scorer becomes the mixture of head and centers (eq. 6), for
pseudo-labels (eq. 7) and for evaluation; two losses are added, L_c, which draws features to the center of their class,
and L_reg (eq. 8), which holds the centers apart as a simplex ETF (eqs. 1-2):
L = L_host + 1e-4 L_c + 0.1 L_reg (eq. 9). The host keeps its targeter, its thresholds, read from mixed scores now, its
terms and its keepers.

Deviations of the default (options lead back to the paper and to the public code, `remop_official`):
mixture: softmax(beta z + (1-beta) cos / t), cosines from the pool mean, instead of a probability plus a cosine;
mask: the mixture's confidence, not the head's (eq. 3); L_c: mean instead of half the sum, 0 instead of NaN when empty;
centers: from class means of labeled features, at ten times the rate, saved and evaluated with the network; L_c moves
them with weight 1, lambda_c weighs its pull on features alone (the public code divides all their gradients by lambda_c,
L_reg's with them); a class without labels has no center, and its score is the head's alone.

Candidate sets, "not these" and votes train the host's supervised term; they name no center and are left out of L_c on
purpose. On a frozen encoder neither loss can move features: `centers.update` "ema" keeps the centers class means there.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from learner.center_signals import CenterReader
from learner.center_terms import CenterLoss, CenterReduction, NCReg
from learner.centers import CenterOptions, ClassCenters
from learner.keepers.base import KeeperOptions
from learner.keepers.centers import CenterKeeper
from learner.losses import MixtureMode
from learner.parts import LossTerm, Recipe
from learner.scorers import LinearSoftmax, MixtureScorer

PART = "centers"


class RemopOptions(KeeperOptions):
    """Options of the plug-in.

    beta: the head's share of the mixture, 1 is the host's own reading. mix, temperature: see `losses.mixture_logits`;
    the temperature also serves the signals. confidence: of the mixture, or of the head (eq. 3), which is the only one
    for mix "literal"; None chooses. lambda_c, lambda_reg: weights of L_c and L_reg, of which 0 leaves the term out;
    lambda_reg None is .1, or 0 where the centers take no gradient. nc2_norm: the public code's L_reg. reduction: see
    `CenterLoss`. centers: see `CenterOptions`.
    """

    beta: float = Field(0.5, ge=0, le=1)
    mix: MixtureMode = "logit_cos"
    temperature: float = Field(0.1, gt=0)
    confidence: Literal["mixed", "linear"] | None = None
    lambda_c: float = Field(1e-4, ge=0)
    lambda_reg: float | None = Field(None, ge=0)
    nc2_norm: bool = False
    reduction: CenterReduction = "joint"
    centers: CenterOptions = CenterOptions()

    @property
    def regularizer_weight(self) -> float:
        """Weight of L_reg, resolved."""
        if self.lambda_reg is not None:
            return self.lambda_reg
        return 0.1 if self.centers.update == "gradient" else 0.0

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the message says which and why.
        """
        self.centers.check()
        if self.centers.update == "ema" and self.regularizer_weight > 0:
            raise ValueError("remop.lambda_reg trains the centers, which take no gradient with centers.update 'ema'")
        if self.nc2_norm and self.regularizer_weight == 0:
            raise ValueError("remop.nc2_norm is a form of L_reg, which has weight 0")
        if self.mix == "literal" and self.confidence == "mixed":
            raise ValueError("remop.mix 'literal' is no distribution and has no confidence; use confidence 'linear'")
        if self.mix == "official" and self.centers.center and "center" in self.centers.model_fields_set:
            raise ValueError("remop.centers.center moves cosines, of which mix 'official' has none")

    def scorer(self) -> MixtureScorer:
        """Return the scorer that these options describe."""
        confidence = self.confidence or ("linear" if self.mix == "literal" else "mixed")
        return MixtureScorer(self.beta, self.temperature, self.mix, confidence)


def with_remop(recipe: Recipe, options: RemopOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return a copy of a host's recipe with class centers: scorer, losses, keeper, part and columns remop_*.

    Raises:
        ValueError: options without meaning, a host that has centers already, whose scorer is not the softmax of its
            logits, or whose unit features the dot product of mix "official" does not suit (Ada-CM).
    """
    options.check()
    if PART in recipe.parts:
        raise ValueError(f"remop: {recipe.name!r} has class centers already")
    if not isinstance(recipe.scorer, LinearSoftmax):
        raise ValueError(f"remop: {recipe.name!r} does not read the softmax of its logits, which a mixture starts from")
    if options.mix == "official" and recipe.feature_norm == "l2":
        reason = f"remop: mix 'official' reads plain dot products, which unit features ({recipe.name!r}) keep below |h|"
        if recipe.name == "adacm":
            raise ValueError(f"{reason}; Ada-CM needs a cosine mixture")
        warnings.warn(f"{reason}; use feature_norm 'none' or a cosine mixture", stacklevel=2)
    if options.regularizer_weight > 0 and feature_dim < num_classes - 1:
        warnings.warn(f"remop: {num_classes} centers form no simplex ETF in {feature_dim} dimensions", stacklevel=2)
    centers = ClassCenters(num_classes, feature_dim, options.centers)
    unlabeled = recipe.targeter is not None and "s" in recipe.views
    scale = 1 / options.lambda_c if options.centers.pull == "own" and options.lambda_c > 0 else 1.0
    mine: list[tuple[LossTerm, float]] = [
        (CenterLoss(centers, options.reduction, unlabeled, scale), options.lambda_c),
        (NCReg(centers, options.nc2_norm), options.regularizer_weight),
    ]
    return replace(
        recipe,
        scorer=options.scorer(),
        losses=[*recipe.losses, *((term, weight) for term, weight in mine if weight > 0)],
        keepers=[*recipe.keepers, CenterKeeper(centers, options.nc2_norm)],
        parts={**recipe.parts, PART: centers},
        readers=[*recipe.readers, CenterReader(options.temperature)],
    )


# The paper's features are not normalised; Ada-CM and LION keep the unit features that their own parts are made for.
PLAIN: Mapping[str, Any] = {"feature_norm": "none"}

# The public code's documented settings; use lr 1e-4, 800 steps an epoch, 100 epochs. Not its flaws: centers are in the
# checkpoint, and L_c of nobody is 0.
OFFICIAL: Mapping[str, Any] = {
    "feature_norm": "none",
    "forward_mode": "separate",
    "pseudo_source": "student_train",
    "lambda_u": 0.2,
    "remop": {
        "mix": "official",
        "nc2_norm": True,
        "reduction": "separate",
        "centers": {"init": "normal", "lr_scale": 1.0, "pull": "shared"},
    },
}
