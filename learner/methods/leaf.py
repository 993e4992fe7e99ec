"""LEAF: semantic, instance and category level of expression features (Zhang et al., 2024). ALGORITHMS.md 5.

Deviations of the default (options lead back to the paper and to the public code, `leaf_official`):
eqs. 2-5: experts that are really several, two of four open; softmax of the raw scores, not of their softplus, under
which a chosen expert can never be switched off; residual experts start as the identity;
eqs. 6-8: the weak view splits the classes, at most K-1 positive; eqs. 9-14: the strong view is trained, on logits.
Candidate sets, votes and "not these" answers train in the supervised term; on unlabeled images they do not exist.
"""

from typing import Any, Literal

from pydantic import Field

from learner.ambiguity import AmbiguityOptions, AmbiguousConsistency, Mask, Partition
from learner.methods.eaf import LevelOptions, with_experts
from learner.methods.options import Options
from learner.parts import LossTerm, Recipe, Targeter
from learner.scorers import LinearSoftmax
from learner.targeters import ConfidenceTargeter
from learner.terms import ConsistencyCE, SupervisedCE


class LeafAmbiguity(AmbiguityOptions):
    """See `AmbiguityOptions`; LEAF learns from every unlabeled image, confident or not."""

    mask: Mask = "none"


class LeafOptions(LevelOptions, Options):
    """Options of LEAF; semantic, instance, experts, balance_weight: see `LevelOptions`.

    consistency: the category level, cross-entropy with FixMatch's mask in its place, or no unlabeled term ("none", the
    ablation without category level). threshold: confidence of the mask, which only cross-entropy and the two masks of
    `ambiguity` read. lambda_u: weight of the unlabeled term.
    """

    consistency: Literal["ambiguous", "cross_entropy", "none"] = "ambiguous"
    ambiguity: LeafAmbiguity = LeafAmbiguity()
    threshold: float = Field(0.95, gt=0, le=1)
    lambda_u: float = Field(1.0, ge=0)

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the message says which and why.
        """
        if self.consistency != "ambiguous" and self.ambiguity != LeafAmbiguity():
            raise ValueError(f"ambiguity says how the ambiguous loss works, but consistency is {self.consistency!r}")
        if self.consistency == "none" and "lambda_u" in self.model_fields_set:
            raise ValueError("lambda_u weighs the unlabeled term, which consistency 'none' leaves out")


def leaf(options: LeafOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe of eq. 1: L = mean CE(z_l, y) + lambda_u * mean L_amb."""
    options.check()
    losses: list[tuple[LossTerm, float]] = [(SupervisedCE(), 1.0)]
    targeter: Targeter | None = None
    if options.consistency == "ambiguous":
        targeter = Partition(ConfidenceTargeter(options.threshold), options.ambiguity)  # eqs. 6-8
        losses.append((AmbiguousConsistency(options.ambiguity), options.lambda_u))  # eqs. 9-14
    elif options.consistency == "cross_entropy":
        targeter = ConfidenceTargeter(options.threshold)
        losses.append((ConsistencyCE(), options.lambda_u))
    host = Recipe(name="leaf", scorer=LinearSoftmax(), targeter=targeter, losses=losses, **options.layout())
    return with_experts(host, options, num_classes, feature_dim, options.ambiguity)  # eqs. 2-5


# The public code's documented settings, as EAF on Ada-CM: Ada-CM's supervised weight, contrast and thresholds stay, the
# ambiguous loss takes the place of its cross-entropy. One expert a level: what the code's shared ones amount to.
OFFICIAL: dict[str, Any] = {
    "feature_scale": 1.0,
    "forward_mode": "separate",
    "pseudo_source": "student_train",
    "eaf": {
        "instance": "features",
        "experts": {"num": 1, "top": 1},
        "category": True,
        "ambiguity": {
            "rule": "official",
            "weight": "official",
            "rescale_to_ce": True,
            "mask": "official_mean_mask",
            "weak_views": 2,
            "partition_of": "logits",
        },
    },
}
