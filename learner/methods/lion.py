"""LION: label disambiguation and progressive negative learning (Du et al., IJCAI 2023). ALGORITHMS.md 6.

Deviations of the default, which the annotation loop uses (`lion_paper` and `lion_official` lead back):
eq. 1: a label leaves the loss by the margin test, after a warm-up and a grace of 30 visits, never when adjudicated;
eq. 2: doubted labels train softly on w, weight .5; candidate sets and "not these" answers have losses of their own;
eq. 3: features are seen from the pool mean; the first observation sets a prototype;
eq. 4: the given label is a candidate too, a person's candidate set is the whole set;
eq. 5: w starts uniform and follows a softmax of cosines over the candidates, normalised;
eq. 6: ten doubtful visits at least; a suggestion and a training target, people's labels stay as they are;
eq. 8: divided by the batch size, as in FixMatch; eq. 9: one bank row per image, at most K-2 classes, entries that the
model comes to contradict or that grow old leave; eq. 10: with the log that it lacks in print.
"""

from typing import Any, Literal

from pydantic import Field

from learner.keepers.base import KeeperOptions, Warmup
from learner.keepers.candidates import HALF_LIFE_OF_99
from learner.keepers.complement_bank import BankOptions, ComplementBank
from learner.keepers.disambiguator import Disambiguator, DisambiguatorOptions
from learner.keepers.prototypes import PrototypeOptions, Prototypes
from learner.methods.options import Options
from learner.parts import Clock, LossTerm, Recipe
from learner.scorers import LinearSoftmax
from learner.targeters import LionReliability
from learner.terms import ConsistencyCE, NegativeConsistency, NegativeLearning, Scheduled, SupervisedCE


class LionWeights(KeeperOptions):
    """The weights of eq. 12. fade: the negative terms' share of their weight falls as in the public code."""

    supervised: float = Field(1.0, ge=0)
    reliable: float = Field(0.85, ge=0)
    negative: float = Field(0.45, ge=0)
    consistency: float = Field(0.06, ge=0)
    fade: bool = False


class LionOptions(Options):
    """Options of LION.

    reliable: gamma, growing by reliable_growth per epoch up to .99. reduction: denominator of eq. 8. negative_form:
    eq. 11 or the public code's cross-entropy of sigmoid gaps. warmup_share of a run in benchmarks, warmup_steps of the
    lifetime in the loop: every label is used. labels, prototypes, bank, weights: see there.
    """

    reliable: float = Field(0.83, gt=0, le=1)
    reliable_growth: float = Field(0.0, ge=0, le=1)
    reduction: Literal["all", "selected"] = "all"
    negative_form: Literal["log", "sigmoid_gap"] = "log"
    warmup_share: float = Field(1 / 3, ge=0, le=1)
    warmup_steps: int = Field(2000, ge=0)
    labels: DisambiguatorOptions = DisambiguatorOptions()
    prototypes: PrototypeOptions = PrototypeOptions()
    bank: BankOptions = BankOptions()
    weights: LionWeights = LionWeights()

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the message says which and why.
        """
        if self.bank.delta >= self.reliable:
            raise ValueError(f"bank.delta {self.bank.delta} must lie below reliable {self.reliable}")
        if self.prototypes.start == "mean" and self.prototypes.normalise:
            raise ValueError("prototypes.start 'mean' averages vectors and so needs prototypes.normalise false")


def lion(options: LionOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return the recipe of eq. 12: L_S + .85 L_Re + .45 L_NL + .06 L_NC."""
    options.check()
    warmup = Warmup(options.warmup_share, options.warmup_steps)
    prototypes = Prototypes(num_classes, feature_dim, options.prototypes, options.labels.clear, warmup)  # eq. 3
    doubts = Disambiguator(num_classes, options.labels, prototypes, warmup)  # eqs. 1, 4-6
    bank = ComplementBank(num_classes, options.bank, options.reliable)  # eq. 9
    weights = options.weights
    negative: LossTerm = NegativeLearning()  # eq. 10
    consistent: LossTerm = NegativeConsistency(official=options.negative_form == "sigmoid_gap")  # eq. 11
    if weights.fade:
        negative, consistent = Scheduled(negative, negative_fade), Scheduled(consistent, negative_fade)
    return Recipe(
        name="lion",
        scorer=LinearSoftmax(),
        targeter=LionReliability(options.reliable, options.reliable_growth),  # eq. 7
        keepers=[doubts, bank, prototypes],
        losses=[
            (SupervisedCE(), weights.supervised),  # eq. 2
            (ConsistencyCE(options.reduction), weights.reliable),  # eq. 8
            (negative, weights.negative),
            (consistent, weights.consistency),
        ],
        **options.layout(),
    )


def negative_fade(clock: Clock) -> float:
    """Return the public code's weight of negative learning: .24 - .015 * epoch, epochs from 1, zero from 16 on."""
    return max(0.0, 0.24 - 0.015 * (int(clock.method_epoch) + 1))


_BENCHMARK: dict[str, Any] = {"forward_mode": "separate", "pseudo_source": "student_train"}

# Eqs. 1-12 as printed, with the log of eq. 10; the warm-up of a third of the run is ours: without it every label is
# doubted at a fresh start and nothing can be learned.
PAPER: dict[str, Any] = _BENCHMARK | {
    "reduction": "selected",
    "labels": {
        "ambiguity": "strict",
        "min_visits": 0,
        "candidates": "paper",
        "w_init": "probs",
        "similarity": "cosine",
        "normalise": False,
        "half_life_visits": HALF_LIFE_OF_99,
        "suggest_visits": 1,
        "ambiguous_loss": "none",
    },
    "prototypes": {"center": False},
    "bank": {"cap": "limit", "release_above": None, "max_age_rounds": None},
}

# The public code's documented settings. Not its bugs: the bank is kept by row, gamma stops at .99, BatchNorm is not
# decayed, the running means are not restarted, and a hardened label is trained on. For its "neutral stays" rule set
# labels.protected to the class's index.
OFFICIAL: dict[str, Any] = _BENCHMARK | {
    "feature_scale": 1.0,
    "reliable": 0.80,
    "reliable_growth": 0.01,
    "negative_form": "sigmoid_gap",
    "warmup_share": 0.3,
    "labels": {
        "min_visits": 0,
        "candidates": "official",
        "w_init": "probs",
        "similarity": "softmax_unmasked",
        "half_life_visits": HALF_LIFE_OF_99,
        "harden": 0.985,
        "suggest": 0.985,
        "suggest_visits": 1,
        "ambiguous_loss": "none",
    },
    "prototypes": {"center": False, "normalise": False, "start": "mean"},
    "bank": {"delta": 0.01, "cap": "limit", "release_above": None, "max_age_rounds": None},
    "weights": {"supervised": 1.6, "reliable": 1.2, "negative": 1.0, "consistency": 1 / 6.5, "fade": True},
}
