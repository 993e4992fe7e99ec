"""LEAF's category level: which classes an image may be of, and training to keep them above the rest.

ALGORITHMS.md 5.2; the columns of 12 for the labeling tool.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from learner import losses
from learner.eaf import Level, gate_key
from learner.gates import gate_entropy
from learner.keepers.base import KeeperOptions
from learner.losses import PartitionMethod, Reduction
from learner.parts import Clock, NetOut, Scores, StepContext, Target, Targeter
from learner.state import pack_bits

Mask = Literal["none", "host_mask_per_sample", "official_mean_mask"]
_TINY = 1e-38  # under the log of a probability


class AmbiguityOptions(KeeperOptions):
    """How classes are split and how the loss reads the split.

    cumulative: T_cum, the probability that the positive classes hold together. rule: the paper's, or the public code's.
    direction: who splits and who is trained. scores: what the loss compares; on probabilities it cannot approach 0.
    weight: the public code's weight of a sample. margin: eps. rescale_to_ce: give the batch the value of plain
    cross-entropy, as the public code does. mask: what the host's mask does: nothing, weigh its sample, or weigh the
    whole batch by its mean. weak_views: 2 splits by the mean of two weak views; partition_of: their mean probabilities,
    or the softmax of their mean logits.
    """

    cumulative: float = Field(0.9, gt=0, le=1)
    rule: PartitionMethod = "cumulative"
    direction: Literal["weak_to_strong", "strong_to_weak"] = "weak_to_strong"
    scores: Literal["logits", "probs"] = "logits"
    weight: Literal["none", "official"] = "none"
    margin: float = Field(0.0, ge=0)
    rescale_to_ce: bool = False
    mask: Mask = "host_mask_per_sample"
    weak_views: Literal[1, 2] = 1
    partition_of: Literal["probs", "logits"] = "probs"

    @model_validator(mode="after")
    def _meaningful(self) -> "AmbiguityOptions":
        several = self.weak_views == 2 or self.partition_of == "logits"
        if self.direction == "strong_to_weak" and several:
            raise ValueError("weak_views 2 and partition_of 'logits' say how weak views split: not in 'strong_to_weak'")
        return self

    def read(self, scores: Scores) -> Tensor:
        """Return the probabilities (B,K) that define the split."""
        if self.partition_of == "logits" and scores.log_mean is not None:
            return torch.softmax(scores.log_mean, dim=1)
        return scores.p

    def split(self, probs: Tensor) -> Tensor:
        """Return the positive classes (B,K) bool, at most K-1."""
        return losses.positive_partition(probs, self.cumulative, self.rule)


@dataclass(frozen=True, slots=True)
class Partition:
    """Add the positive classes to the targets of another targeter."""

    inner: Targeter
    options: AmbiguityOptions

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return the inner target with `positive` (B_u,K)."""
        return replace(self.inner(scores, rows, clock), positive=self.options.split(self.options.read(scores)))


@dataclass(frozen=True, slots=True)
class AmbiguousConsistency:
    """One view's positive classes stay above the others in another view (LEAF eqs. 9-14).

    reduction: denominator under "host_mask_per_sample", B_u or the samples with weight.
    """

    options: AmbiguityOptions
    reduction: Reduction = "all"
    name: str = "ambiguous"

    @property
    def views(self) -> frozenset[str]:
        """Both sides of the comparison."""
        return frozenset({"w", "s"} | ({"w2"} if self.options.weak_views == 2 else set()))

    @property
    def grad_views(self) -> frozenset[str]:
        """The side that is compared with the split."""
        return frozenset({"s" if self.options.direction == "weak_to_strong" else "w"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss.

        Raises:
            ValueError: the recipe has no targeter, or none that splits classes.
        """
        options, target = self.options, ctx.target
        if target is None or target.positive is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe whose targeter is a Partition")
        if options.direction == "weak_to_strong":
            z, hard, positive, probs = ctx.outs["s"].z, target.hard, target.positive, options.read(ctx.scores["w"])
        else:
            strong = Scores.of(torch.softmax(losses.full_precision(ctx.outs["s"].z.detach()), dim=1))
            z, hard, positive, probs = ctx.outs["w"].z, strong.hard, options.split(strong.p), strong.p
        s = losses.full_precision(z) if options.scores == "logits" else torch.softmax(losses.full_precision(z), dim=1)
        cost = losses.ambiguous_consistency(s, positive, options.margin)
        if options.weight == "official":
            cost = cost * losses.partition_weight(probs, positive)
        ctx.logs[f"{self.name}/classes"] = positive.sum(dim=1).float().mean()
        ctx.logs[f"{self.name}/selected"] = (target.weight > 0).float().mean()
        return self._masked(cost, target.weight) * self._scale(z, hard, cost)

    def _masked(self, cost: Tensor, weight: Tensor) -> Tensor:
        if self.options.mask == "host_mask_per_sample":
            return losses.masked_mean(cost, weight, self.reduction)
        mean = losses.masked_mean(cost, torch.ones_like(cost))
        return mean * weight.float().mean() if self.options.mask == "official_mean_mask" else mean

    def _scale(self, z: Tensor, hard: Tensor, cost: Tensor) -> Tensor | float:
        if not self.options.rescale_to_ce:
            return 1.0
        plain = losses.cross_entropy(z.detach(), hard).mean()
        return plain / cost.detach().mean().clamp(min=1e-8)


@dataclass(frozen=True, slots=True)
class LeafReader:
    """Columns leaf_* for the labeling tool: which classes an image may be of, and which experts read it.

    leaf_m uint8 classes that hold probability `cumulative` together, at most K-1, by the paper's rule whatever the
    training; leaf_set int64, their bits; leaf_coverage, what they hold; leaf_loss, the consistency error of the strong
    view; leaf_gate_entropy_sem and _inst in [0, 1], shares of the logarithm of `rated`; leaf_top_expert uint8 of the
    first level. Columns of a level without gate are absent.
    """

    cumulative: float = 0.9
    margin: float = 0.0
    rated: int = 2

    def __call__(self, out: NetOut, scores: Scores, strong: Scores | None) -> dict[str, Tensor]:
        """Return the columns (B,) of a clean view's output."""
        positive = losses.positive_partition(scores.p, self.cumulative)
        columns = {
            "leaf_m": positive.sum(dim=1).to(torch.uint8),
            "leaf_set": pack_bits(positive),
            "leaf_coverage": (scores.p * positive).sum(dim=1).clamp(max=1).float(),
        }
        levels: tuple[tuple[Level, str], ...] = (("semantic", "sem"), ("instance", "inst"))
        for level, short in levels:
            gate = out.aux.get(gate_key(level))
            if gate is not None:
                share = gate_entropy(gate) / math.log(self.rated) if self.rated > 1 else torch.zeros_like(gate[:, 0])
                columns[f"leaf_gate_entropy_{short}"] = share.clamp(0, 1).float()
                columns.setdefault("leaf_top_expert", gate.argmax(dim=1).to(torch.uint8))
        if strong is not None:
            z = strong.p.clamp(min=_TINY).log()  # the loss does not see what is added to a row of logits
            columns["leaf_loss"] = losses.ambiguous_consistency(z, positive, self.margin).float()
        return columns
