"""Contrast between two weak views of the samples that no pseudo-label was trusted for (Ada-CM; ALGORITHMS.md 4)."""

from dataclasses import dataclass

from torch import Tensor

from learner import losses
from learner.parts import StepContext


@dataclass(frozen=True, slots=True)
class NTXentSubset:
    """NT-Xent over the unlabeled samples outside `Target.subset`, between their features in two weak views.

    Both weak views receive gradient. Exactly 0 when fewer than two samples are left: one alone has nobody to differ
    from.
    """

    temperature: float = 0.07
    name: str = "contrast"
    views: frozenset[str] = frozenset({"w", "w2"})
    grad_views: frozenset[str] = frozenset({"w", "w2"})

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, with gradient through the features of both weak views."""
        if ctx.target is None:
            raise ValueError(f"the loss term {self.name!r} needs a recipe with a targeter")
        left = ~ctx.target.subset
        ctx.logs[f"{self.name}/samples"] = left.sum().float()
        return losses.nt_xent(ctx.outs["w"].f, ctx.outs["w2"].f, self.temperature, left)
