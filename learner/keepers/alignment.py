"""Distribution alignment: what the model predicts on average, what it should, and predictions moved accordingly."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.distributions import align_distribution, completed, follow
from learner.keepers.base import IdleKeeper
from learner.parts import Clock, Scores, StepContext, Target, Targeter


class DistributionAlignment(IdleKeeper):
    """Keep running means of the probabilities of the weak views, model (K,), and of the labeled ones, target (K,).

    target "uniform" is 1/K for ever (SoftMatch), "labeled" follows the labeled views (AdaMatch). Both means take the
    step's batch before its targets are made, and start at 1/K.
    """

    name = "alignment"

    def __init__(self, num_classes: int, target: Literal["uniform", "labeled"], momentum: float = 0.999) -> None:
        """Start uniform."""
        self.reads_labeled = target == "labeled"
        self.momentum = momentum
        self.model = torch.full((num_classes,), 1 / num_classes)
        self.target = self.model.clone()

    def align(self, p: Tensor) -> Tensor:
        """Return aligned predictions (B,K)."""
        return align_distribution(p, self.model.to(p), self.target.to(p))

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Take the batch into the means."""
        weak, labeled = ctx.scores["w"].p, ctx.scores["l"].p
        if len(weak):
            self.model = follow(self.model.to(weak), weak.mean(dim=0), self.momentum)
        if self.reads_labeled:
            self.target = follow(self.target.to(labeled), labeled.mean(dim=0), self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """Return both means."""
        known = torch.ones_like(self.model)
        return {"model:class0": self.model.clone(), "target:class0": self.target.clone(), "known:class0": known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved means; a class that they do not know starts at 1/K."""
        known = state.get("known:class0")
        self.model = completed(state["model:class0"], known).to(self.model).clone()
        self.target = completed(state["target:class0"], known).to(self.target).clone()


@dataclass(frozen=True, slots=True)
class DistributionAlign:
    """Let another targeter read aligned predictions.

    labels "aligned": pseudo-labels come from them too (AdaMatch); "raw": from the predictions as they were, so that the
    alignment decides the weights alone (SoftMatch).
    """

    inner: Targeter
    alignment: DistributionAlignment
    labels: Literal["aligned", "raw"] = "aligned"

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Return the inner targeter's target for aligned scores."""
        target = self.inner(Scores.of(self.alignment.align(scores.p)), rows, clock)
        if self.labels == "raw":
            target.hard = scores.hard
        return target
