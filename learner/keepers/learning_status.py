"""FlexMatch's learning status: which class did the model last say of every unlabeled image, when it was sure?"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from learner.keepers.base import KeeperOptions, TableKeeper, change_of_sample
from learner.losses import ThresholdMapping, flexmatch_thresholds, learning_status
from learner.parts import Clock, Event, LabelView, Scores, StepContext
from learner.state import Column, SampleTable


class StatusOptions(KeeperOptions):
    """Options of `LearningStatus`.

    threshold: tau. thresh_warmup: images that were never selected count as a class of their own. mapping: from the
    learning status to the share of tau. t_min: no threshold is lower; at 0, the paper's, whatever is predicted as a
    class that was never selected passes. max_age_rounds: older entries are forgotten; None keeps them.
    """

    threshold: float = Field(0.95, gt=0, le=1)
    thresh_warmup: bool = True
    mapping: ThresholdMapping = "convex"
    t_min: float = Field(0.0, ge=0, le=1)
    max_age_rounds: int | None = Field(2, ge=0)

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: t_min lies above tau, which no class threshold should pass.
        """
        if self.t_min > self.threshold:
            raise ValueError(f"t_min {self.t_min} must not lie above threshold {self.threshold}")


class LearningStatus(TableKeeper):
    """Keep, by row, the class of the last confident pseudo-label (-1: none), and how many images have which.

    "Confident" is max p_w >= tau, the fixed one, and is noted after the step's thresholds were read. The counts are
    over the rows that this run draws from: labeled and removed images leave them.
    """

    name = "learning_status"

    def __init__(self, num_classes: int, options: StatusOptions) -> None:
        """Start with nothing selected.

        Raises:
            ValueError: see `StatusOptions.check`.
        """
        options.check()
        self.num_classes = num_classes
        self.options = options
        self.table = SampleTable(
            {
                "last": Column(torch.int8, default=-1, role="index"),
                "round": Column(torch.int32),
                "step": Column(torch.int32),
            }
        )
        self._pool: Tensor | None = None
        self._inside = torch.zeros(0, dtype=torch.bool)
        self._counts = torch.zeros(num_classes + 1, dtype=torch.int64)  # first those without a class
        self._stale = True

    def start_run(self, unlabeled: Tensor) -> None:
        """Count over these rows (N,); without them, over the rows that training has met."""
        self._pool, self._stale = unlabeled, True

    def counts(self) -> tuple[Tensor, Tensor]:
        """Return n (K,) int64 and n_none, a scalar."""
        if self._stale:
            self._recount()
        return self._counts[1:], self._counts[0]

    def status(self) -> Tensor:
        """Return beta (K,)."""
        return learning_status(*self.counts(), self.options.thresh_warmup)

    def thresholds(self, clock: Clock) -> Tensor:
        """Return T (K,)."""
        return self.class_thresholds()

    def class_thresholds(self) -> Tensor:
        """Return T (K,) = tau * M(beta), from what was noted before this step."""
        cfg = self.options
        return flexmatch_thresholds(*self.counts(), cfg.threshold, cfg.thresh_warmup, cfg.mapping, cfg.t_min)

    def _recount(self) -> None:
        rows = self.table.rows() if self._pool is None else self._pool.to(self.table.device)
        last = self.table.at(rows)["last"].long()
        self._inside = torch.zeros(self.table.capacity, dtype=torch.bool, device=self.table.device)
        self._inside[rows] = True
        self._counts = torch.bincount(last + 1, minlength=self.num_classes + 1)
        self._stale = False

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Report the thresholds that this step will use."""
        self.table.to(ctx.batch.unlabeled_rows.device)
        if self._counts.device != self.table.device:
            self._stale = True
        thresholds = self.class_thresholds()
        ctx.logs["flexmatch/threshold_mean"], ctx.logs["flexmatch/threshold_min"] = thresholds.mean(), thresholds.min()

    @torch.no_grad()
    def observe(self, ctx: StepContext) -> None:
        """Note the class of every image that reached the fixed tau."""
        rows, scores = ctx.batch.unlabeled_rows, ctx.scores["w"]
        confident = scores.conf >= self.options.threshold
        for turn in ctx.batch.unlabeled_in_order():
            self.note(rows[turn], scores.hard[turn], confident[turn], ctx.clock)

    def note(self, rows: Tensor, hard: Tensor, confident: Tensor, clock: Clock) -> None:
        """Visit distinct rows (B,): where confident (B,) bool, their last class becomes hard (B,)."""
        self.counts()
        state = self.table.at(rows)
        if len(self._inside) < self.table.capacity:
            more = torch.zeros(self.table.capacity - len(self._inside), dtype=torch.bool, device=self._inside.device)
            self._inside = torch.cat([self._inside, more])
        before = state["last"].long()
        after = torch.where(confident, hard, before)
        self._counts.index_add_(0, before + 1, -self._inside[rows].long())
        self._counts.index_add_(0, after + 1, torch.ones_like(after))
        self._inside[rows] = True
        state["last"] = after
        state.put("round", clock.round, confident)
        state.put("step", clock.lifetime_step, confident)

    def on_event(self, event: Event) -> None:
        """Forget rows that people answer or take an answer back from, and, between rounds, what has grown old."""
        change_of_sample(self.table, event)
        if event.kind in ("labelled", "label_removed"):
            self.table.reset(torch.tensor([event.row]))
        elif event.kind == "round_started" and self.options.max_age_rounds is not None:
            state = self.table.at(self.table.rows())
            state.put("last", -1, event.new - state["round"].long() > self.options.max_age_rounds)
        self._stale = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return the table; the counts follow from it."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        self.table.load_state_dict(state)
        self._stale = True

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return flex_T and flex_beta of the predicted class, and flex_last, the last confident class or -1."""
        hard = scores.hard.cpu()
        return {
            "flex_T": self.class_thresholds().float().cpu()[hard].numpy(),
            "flex_beta": self.status().float().cpu()[hard].numpy(),
            "flex_last": self.table.at(rows)["last"].cpu().numpy(),
        }
