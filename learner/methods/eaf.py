"""EAF, the expert-adaptive fusion of LEAF, on any host (Zhang et al., 2024). ALGORITHMS.md 5.

Semantic level: experts on features, eqs. 2-3; instance level: experts on logits, eqs. 4-5; category level, on demand:
the host's consistency cross-entropy becomes the ambiguous loss, eqs. 6-14, with the host's mask as its weight. The host
keeps masks, thresholds, keepers and every other term.

Deviations: raw scores under the gate's softmax instead of softplus; logits in the ambiguous loss, on which it can
approach 0; the weak view splits and the strong one is trained. Options lead back.
"""

import warnings
from dataclasses import replace
from typing import Literal

from pydantic import Field

from learner.ambiguity import AmbiguityOptions, AmbiguousConsistency, LeafReader, Partition
from learner.eaf import ExpertOptions, FeatureEaf, GateBalance, LogitEaf
from learner.keepers.base import KeeperOptions
from learner.parts import LossTerm, Recipe
from learner.terms import ConsistencyCE, Scheduled


class LevelOptions(KeeperOptions):
    """semantic, instance: the levels; the public code has its instance level on features, behind their normalisation.

    experts: see there, the same at both levels. balance_weight: weight of the term that spreads the load.
    """

    semantic: bool = True
    instance: Literal["logits", "features", "none"] = "logits"
    experts: ExpertOptions = ExpertOptions()
    balance_weight: float = Field(0.01, ge=0)


class EafOptions(LevelOptions):
    """category: replace the host's consistency cross-entropy by the ambiguous loss; ambiguity: see there."""

    category: bool = False
    ambiguity: AmbiguityOptions = AmbiguityOptions()


def with_eaf(recipe: Recipe, options: EafOptions, num_classes: int, feature_dim: int) -> Recipe:
    """Return a copy of a host's recipe with the levels that the options name.

    Raises:
        ValueError: no level is on, the host has EAF already, it has no consistency cross-entropy to replace, or
            `ambiguity` is set although the category level is off, or `experts` although the other two are.
    """
    if not (options.semantic or options.instance != "none" or options.category):
        raise ValueError("eaf: all three levels are off; name the host alone instead")
    if options.category:
        recipe = with_category(recipe, options.ambiguity)
    elif options.ambiguity != EafOptions().ambiguity:
        raise ValueError("eaf.ambiguity says how the category level works, which is off; set eaf.category")
    if not options.semantic and options.instance == "none" and "experts" in options.model_fields_set:
        raise ValueError("eaf.experts are of the semantic and the instance level, which are both off")
    return with_experts(recipe, options, num_classes, feature_dim, options.ambiguity)


def with_category(recipe: Recipe, options: AmbiguityOptions) -> Recipe:
    """Put the ambiguous loss in the place of every consistency cross-entropy, and the partition around the targeter.

    Raises:
        ValueError: there is none, or the host splits classes already.
    """
    if recipe.targeter is None or not any(is_consistency(term) for term, _ in recipe.losses):
        raise ValueError(f"eaf: {recipe.name!r} has no consistency cross-entropy that the ambiguous loss could replace")
    return replace(
        recipe,
        targeter=Partition(recipe.targeter, options),
        losses=[(swapped(term, options), weight) for term, weight in recipe.losses],
    )


def is_consistency(term: LossTerm) -> bool:
    """Tell whether a term is a consistency cross-entropy, scheduled or not."""
    return is_consistency(term.term) if isinstance(term, Scheduled) else isinstance(term, ConsistencyCE)


def swapped(term: LossTerm, options: AmbiguityOptions) -> LossTerm:
    """Return the ambiguous loss for a consistency cross-entropy, anything else as it is."""
    if isinstance(term, Scheduled):
        return replace(term, term=swapped(term.term, options))
    return AmbiguousConsistency(options, term.reduction) if isinstance(term, ConsistencyCE) else term


def with_experts(
    recipe: Recipe, options: LevelOptions, num_classes: int, feature_dim: int, ambiguity: AmbiguityOptions
) -> Recipe:
    """Add the experts of the semantic and the instance level, the balance of their gates and the columns leaf_*.

    Raises:
        ValueError: the host has experts already.
    """
    there = (*recipe.feature_adapters, *recipe.head_adapters, *recipe.logit_adapters)
    if any(isinstance(adapter, (FeatureEaf, LogitEaf)) for adapter in there):
        raise ValueError(f"eaf: {recipe.name!r} has experts already")
    experts = options.experts
    if experts.num > 1 and experts.chosen == 1 and experts.style == "topk":
        warnings.warn(
            "eaf: a gate that opens one expert (top 1) under its own softmax receives no gradient; use style 'switch'",
            stacklevel=2,
        )
    semantic = [FeatureEaf("semantic", feature_dim, experts)] if options.semantic else []
    on_features = [FeatureEaf("instance", feature_dim, experts)] if options.instance == "features" else []
    on_logits = [LogitEaf(num_classes, experts)] if options.instance == "logits" else []
    added: tuple[FeatureEaf | LogitEaf, ...] = (*semantic, *on_features, *on_logits)
    balance = [(GateBalance(added, recipe.grad_views), options.balance_weight)] if added and experts.num > 1 else []
    return replace(
        recipe,
        losses=[*recipe.losses, *balance],
        feature_adapters=[*recipe.feature_adapters, *semantic],
        head_adapters=[*recipe.head_adapters, *on_features],
        logit_adapters=[*recipe.logit_adapters, *on_logits],
        readers=[*recipe.readers, LeafReader(ambiguity.cumulative, ambiguity.margin, experts.rated)],
    )
