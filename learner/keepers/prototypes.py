"""LION's class prototypes (eq. 3): one direction per class in feature space, moved by clear and reliable samples."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.keepers.base import KeeperOptions, Warmup
from learner.keepers.class_vectors import MEAN_WINDOW, ClassVectorKeeper
from learner.parts import StepContext, Survey


class PrototypeOptions(KeeperOptions):
    """Options of `Prototypes`.

    decay: phi, per observation. center: subtract the pool mean before every cosine (non-negative features otherwise
    have cosines near 1 to all classes). normalise: keep prototypes at unit length. start: a class begins at its first
    observation, or (public code) as the running mean of the warm-up.
    """

    decay: float = Field(0.99, ge=0, lt=1)
    center: bool = True
    normalise: bool = True
    start: Literal["first", "mean"] = "first"


def ema_write(
    vectors: Tensor, is_set: Tensor, observed: Tensor, classes: Tensor, keep: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """Move class vectors (K,d) by observations (n,d) of classes (n,) where keep (n,) bool; return them and counts (K,).

    All observations of a class are one write, in the order given: decay^n S + (1 - decay) sum_i decay^(n-i) q_i. The
    first observation of a class that is not set (is_set (K,) bool) sets it. Vectors are not normalised here.
    """
    member = F.one_hot(classes, len(vectors)).to(observed.dtype) * keep.to(observed.dtype)[:, None]
    count = member.sum(dim=0)
    rank = member.cumsum(dim=0)
    opens = (rank == 1) & ~is_set
    share = torch.where(opens, 1.0, 1.0 - decay) * decay ** (count - rank) * member
    old = vectors * is_set[:, None] * (decay**count)[:, None]
    moved = torch.where(count[:, None] > 0, old + share.T @ observed, vectors)
    return moved, count.long()


class Prototypes(ClassVectorKeeper):
    """Keep S (K,d), which classes have one, and the pool mean m (d,), all without gradient in float32.

    Who writes (in `observe`, so that every step reads the prototypes of the step before): labeled samples that are
    clear by the strict test, max p >= clear and argmax p = the label trained on, then reliable unlabeled ones; each in
    ascending row order, so that a batch's order changes nothing.
    """

    name = "prototypes"
    reads_labeled = True
    _STATE = ("vectors:class0", "counts:class0", "labels:class0", "changed:class0", "mean", "mean_steps")

    def __init__(
        self, num_classes: int, feature_dim: int, options: PrototypeOptions, clear: float, warmup: Warmup
    ) -> None:
        """Start without any prototype."""
        super().__init__(num_classes)
        self.options = options
        self.clear = clear
        self.warmup = warmup
        self.vectors = torch.zeros(num_classes, feature_dim)
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(feature_dim)

    @property
    def is_set(self) -> Tensor:
        """Which classes have a prototype, (K,) bool."""
        return self.counts > 0

    def class_vectors(self) -> Tensor:
        """Return the prototypes (K,d); rows of unset classes are zero."""
        return self.vectors

    def directions(self, features: Tensor) -> Tensor:
        """Return features (B,d) as unit vectors, seen from the pool mean where centring is on."""
        self._move(features.device)
        unit = F.normalize(features.detach().float(), dim=1)
        return F.normalize(unit - self.mean, dim=1) if self.options.center else unit

    def cosines(self, features: Tensor) -> Tensor:
        """Return cosines (B,K) of features (B,d) to the prototypes; 0 for classes that have none."""
        return self.directions(features) @ F.normalize(self.vectors, dim=1).T

    @torch.no_grad()
    def observe(self, ctx: StepContext) -> None:
        """Write the batch's clear and reliable samples into the prototypes."""
        if ctx.target is None:
            raise ValueError("prototypes need a recipe with a targeter")
        labeled, pool = ctx.outs["l"].f, ctx.outs["w"].f
        self._move(labeled.device)
        self._follow_mean(pool)
        trained = ctx.labeled.soft.argmax(dim=1)
        scores, target = ctx.scores["l"], ctx.target
        single = (ctx.labeled.soft.max(dim=1).values > 1 - 1e-6) & (ctx.labeled.weight > 0)
        clear = (scores.conf >= self.clear) & (scores.hard == trained) & single
        first = torch.argsort(ctx.batch.rows, stable=True)
        then = torch.argsort(ctx.batch.unlabeled_rows, stable=True)
        self._write(
            torch.cat([self.directions(labeled)[first], self.directions(pool)[then]]),
            torch.cat([trained[first], target.hard[then]]),
            torch.cat([clear[first], target.subset[then]]),
            averaging=self.options.start == "mean" and self.warmup(ctx.clock),
        )
        ctx.logs["prototypes/set"] = self.is_set.sum().float()

    def _write(self, observed: Tensor, classes: Tensor, keep: Tensor, averaging: bool) -> None:
        if averaging:
            member = F.one_hot(classes, len(self.vectors)).to(observed.dtype) * keep.to(observed.dtype)[:, None]
            added = member.sum(dim=0)
            total = (self.counts + added).clamp(min=1)
            moved = (self.vectors * self.counts[:, None] + member.T @ observed) / total[:, None]
            count = added.long()
        else:
            moved, count = ema_write(self.vectors, self.is_set, observed, classes, keep, self.options.decay)
        self.vectors = F.normalize(moved, dim=1) if self.options.normalise else moved
        self.counts = self.counts + count

    def _follow_mean(self, pool: Tensor) -> None:
        if not self.options.center or not len(pool):
            return
        self.mean_steps = self.mean_steps + 1
        batch_mean = F.normalize(pool.detach().float(), dim=1).mean(dim=0)
        self.mean = self.mean + (batch_mean - self.mean) / self.mean_steps.clamp(max=MEAN_WINDOW)

    @torch.no_grad()
    def survey(self, survey: Survey) -> None:
        """Re-estimate the pool mean, and rebuild dirty or missing prototypes from clear labeled samples."""
        self._move(survey.features.device)
        if self.options.center and len(survey.pool):
            self.mean = F.normalize(survey.pool.float(), dim=1).mean(dim=0)
            self.mean_steps = torch.full_like(self.mean_steps, MEAN_WINDOW // 4)
        conf = survey.p.max(dim=1)
        clear = (conf.values >= self.clear) & (conf.indices == survey.given)
        member = F.one_hot(survey.given.clamp(min=0), len(self.vectors)) * clear[:, None]
        count = member.sum(dim=0)
        rebuilt = member.float().T @ self.directions(survey.features) / count.clamp(min=1)[:, None]
        if self.options.normalise:
            rebuilt = F.normalize(rebuilt, dim=1)
        chosen = (count > 0) & (self.dirty() | ~self.is_set)
        self.vectors = torch.where(chosen[:, None], rebuilt, self.vectors)
        self.counts = torch.where(chosen, count, self.counts)
        self.changed = torch.where(chosen, 0, self.changed)
        seen = F.one_hot(survey.given.clamp(min=0), len(self.vectors)) * (survey.given >= 0)[:, None]
        self.labels = torch.maximum(self.labels, seen.sum(dim=0))  # of many labels, a survey sees a sample

    def forget(self) -> None:
        """No class has a prototype until the survey makes it."""
        self.vectors, self.counts = torch.zeros_like(self.vectors), torch.zeros_like(self.counts)
