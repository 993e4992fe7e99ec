"""The bookkeeping of ReMoP's class centers: where they start, the pool mean, their movement, distances for review."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.center_terms import Members, confident_members, labeled_members
from learner.centers import ClassCenters, class_means
from learner.keepers.base import Answers
from learner.keepers.class_vectors import MEAN_WINDOW, ClassVectorKeeper
from learner.keepers.prototypes import ema_write
from learner.losses import etf_regularizer
from learner.parts import LabelView, Scores, StepContext, Survey

DISTANCES = "remop_dist"  # the reader's column that own distances are taken from


class CenterKeeper(ClassVectorKeeper):
    """Start `ClassCenters` from class means, keep their pool mean, and move them where no gradient does.

    The centers themselves are weights of the network. Kept here: labels (K,) per class, changed labels (K,), the
    centers and L_reg as they were at the start of the round, and how many steps the pool mean has seen.
    """

    name = "centers"
    _STATE = ("labels:class0", "changed:class0", "start:class0", "regularizer", "mean_steps")

    def __init__(self, centers: ClassCenters, nc2_norm: bool = False) -> None:
        """Look after a recipe's centers."""
        super().__init__(len(centers.is_set))
        self.centers = centers
        self.nc2_norm = nc2_norm
        self.start = centers.vectors.detach().clone()
        self.regularizer = torch.zeros(())

    @torch.no_grad()
    def survey(self, survey: Survey) -> None:
        """Re-estimate the pool mean; start missing centers and rebuild dirty ones from labeled features.

        A class whose last label is gone loses its center.
        """
        self._move(survey.features.device)
        centers = self.centers
        if len(survey.pool):
            centers.mean.copy_(survey.pool.float().mean(dim=0))
            self.mean_steps = torch.full_like(self.mean_steps, MEAN_WINDOW // 4)
        if centers.options.init == "class_means":
            means, count = class_means(survey.features, survey.given, len(self.labels))
            chosen = (count > 0) & (self.dirty() | ~centers.is_set)
            centers.is_set &= (count > 0) | (self.labels > 0)
            centers.place(chosen, means)
            self.changed = torch.where(chosen, 0, self.changed)
        self.start = centers.vectors.detach().clone()
        self.regularizer = etf_regularizer(centers.vectors, self.nc2_norm, centers.is_set)

    @torch.no_grad()
    def observe(self, ctx: StepContext) -> None:
        """Follow the pool mean, start the centers of classes that have none yet, and average where that is asked for.

        What is averaged are the samples of the center loss, labeled before unlabeled, each in ascending row order.
        """
        labeled = labeled_members(ctx)
        self._move(labeled.features.device)
        centers, logs = self.centers, ctx.logs
        self._follow_mean(ctx.outs["w"].f if "w" in ctx.outs else labeled.features)
        missing = ~centers.is_set
        means, count = class_means(labeled.features, labeled.classes.masked_fill(~labeled.keep, -1), len(missing))
        opened = (count > 0) & missing
        if centers.options.update == "ema":
            self._average(ctx, labeled, missing)
        centers.place(opened, means)
        self.start = torch.where(opened[:, None], centers.vectors.detach(), self.start)
        logs["centers/set"] = centers.is_set.sum().float()
        logs["centers/regularizer_at_start"] = self.regularizer
        moved = (centers.vectors.detach() - self.start).norm(dim=1) / self.start.norm(dim=1).clamp(min=1e-8)
        for index, drift in enumerate((moved * centers.is_set).unbind()):
            logs[f"centers/drift/{index}"] = drift

    def _average(self, ctx: StepContext, labeled: Members, missing: Tensor) -> None:
        groups = [(labeled, torch.argsort(ctx.batch.rows, stable=True))]
        confident = confident_members(ctx)
        if confident is not None:
            groups.append((confident, torch.argsort(ctx.batch.unlabeled_rows, stable=True)))
        classes = torch.cat([group.classes[order] for group, order in groups])
        self.centers.vectors.copy_(
            ema_write(
                self.centers.vectors,
                self.centers.is_set,
                torch.cat([group.features.detach().float()[order] for group, order in groups]),
                classes,
                torch.cat([group.keep[order] for group, order in groups]) & ~missing[classes],
                self.centers.options.decay,
            )[0]
        )

    def _follow_mean(self, pool: Tensor) -> None:
        if len(pool):
            self.mean_steps = self.mean_steps + 1
            step = 1 / self.mean_steps.clamp(max=MEAN_WINDOW)
            self.centers.mean.lerp_(pool.detach().float().mean(dim=0), step)

    def forget(self) -> None:
        """Let the survey start every center again from class means."""
        if self.centers.options.init == "class_means":
            self.centers.is_set.fill_(False)

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return how far labeled images lie from the center of the class that a person gave; NaN for all others.

        remop_own_dist: |f - h_y|; remop_own_z: the same, standardised among the images with that label, of which there
        must be three. Both come from the reader's distances and are NaN without them.
        """
        distances = scores.columns.get(DISTANCES)
        given = Answers.of(rows.cpu(), view, len(self.labels)).given
        if distances is None:
            own = torch.full((len(rows),), torch.nan)
        else:
            own = distances.cpu().float().gather(1, given.clamp(min=0)[:, None])[:, 0]
            own = own.masked_fill(given < 0, torch.nan)
        return {"remop_own_dist": own.numpy(), "remop_own_z": standardised(own, given, len(self.labels)).numpy()}


def standardised(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return (v - mean) / standard deviation within groups (N,) int64, -1 for none: (N,) float32, NaN below three."""
    known = (groups >= 0) & values.isfinite()
    v = torch.where(known, values, 0).double()
    member = F.one_hot(groups.clamp(min=0), num_groups).double() * known[:, None]
    count = member.sum(dim=0)
    mean = (member.T @ v) / count.clamp(min=1)
    away = (v - mean[groups.clamp(min=0)]) * known
    spread = ((member.T @ away.square()) / (count - 1).clamp(min=1)).sqrt()
    z = away / spread[groups.clamp(min=0)].clamp(min=1e-12)
    enough = known & (count[groups.clamp(min=0)] >= 3)
    return torch.where(enough, z, torch.nan).float()
