"""Ada-CM's confidence margins: how sure must the model be of a class, given how sure it is of its labeled samples?"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.keepers.base import IdleKeeper, KeeperOptions
from learner.losses import adaptive_margins
from learner.parts import Clock, LabeledTarget, LabelView, Scores, StepContext, Survey

Source = Literal["labelled_train", "labelled_augmented", "labelled_holdout"]
_VIEW_OF: dict[Source, str] = {"labelled_train": "w", "labelled_augmented": "s", "labelled_holdout": "x"}
_HOLDOUT = 5  # one labeled row in so many is held out


class MarginOptions(KeeperOptions):
    """Options of `AdaptiveMargins`.

    floor, ceiling: T_c lies between them. update_steps: steps between two readings of the labeled images; None is one
    method epoch (public code), few are the later paper's margins of every iteration. threshold_source: weak views of
    the labeled images, as in training (public code, over-confident: the network trains on the same images); strong
    views of them; or a fifth of them, read clean and kept out of the supervised loss.
    """

    floor: float = Field(0.8, ge=0, le=1)
    ceiling: float = Field(0.97, gt=0, le=1)
    update_steps: int | None = Field(None, ge=1)
    threshold_source: Source = "labelled_train"

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the floor lies above the ceiling, so that no margin could ever adapt.
        """
        if self.floor > self.ceiling:
            raise ValueError(f"margins.floor {self.floor} must not lie above margins.ceiling {self.ceiling}")


def held_out(rows: Tensor) -> Tensor:
    """Choose a fifth of rows (B,) int64 by a hash of the row: (B,) bool, the same rows for ever."""
    mixed = rows * 0x5851F42D4C957F2D + 0x14057B7EF767814F  # wraps around, as a hash should
    return ((mixed >> 33) & 0x7FFFFFFF) % _HOLDOUT == 0


class AdaptiveMargins(IdleKeeper):
    """Keep the mean confidence mu (K,) in labeled samples that are predicted correctly, and the epoch of its reading.

    T_c = max(floor, ceiling * mu_c / (1 + exp(-epoch))), the floor before the first reading, for a class without a
    correct sample and for a class that is new. Only answers with one class are read; candidate sets, "not these" and
    votes name no class that a prediction could be checked against.
    """

    name = "adaptive_margins"

    def __init__(self, num_classes: int, options: MarginOptions) -> None:
        """Start at the floor.

        Raises:
            ValueError: see `MarginOptions.check`.
        """
        options.check()
        self.options = options
        self.mean_confidence = torch.zeros(num_classes)
        self.epoch = 0.0
        self._asked_at = 0.0

    def thresholds(self, clock: Clock) -> Tensor:
        """Return T (K,)."""
        return self.margins()

    def margins(self) -> Tensor:
        """Return T (K,), which moves at surveys only."""
        return adaptive_margins(self.mean_confidence, self.epoch, self.options.floor, self.options.ceiling)

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for the labeled images once per method epoch, or every `update_steps` steps."""
        every = self.options.update_steps or clock.method_epoch_len
        if clock.clock_step == 0 or clock.clock_step % every:
            return None
        self._asked_at = clock.method_epoch
        return _VIEW_OF[self.options.threshold_source]

    @torch.no_grad()
    def survey(self, survey: Survey) -> None:
        """Read mu from the averaged model's predictions of labeled images."""
        self._move(survey.p.device)
        scores = Scores.of(survey.p.float())
        correct = scores.hard == survey.given
        if self.options.threshold_source == "labelled_holdout":
            correct = correct & held_out(survey.rows)
        member = F.one_hot(scores.hard, len(self.mean_confidence)).float() * correct[:, None]
        self.mean_confidence = (member * scores.conf[:, None]).sum(dim=0) / member.sum(dim=0).clamp(min=1)
        self.epoch = self._asked_at

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Keep the held-out labels out of the supervised loss."""
        self._move(ctx.scores["w"].p.device)
        if self.options.threshold_source == "labelled_holdout":
            out = held_out(ctx.batch.rows) & (ctx.batch.given >= 0)
            ctx.labeled = LabeledTarget(ctx.labeled.soft, ctx.labeled.weight.masked_fill(out, 0))
        margins = self.margins()
        ctx.logs["adacm/margin_mean"], ctx.logs["adacm/margin_max"] = margins.mean(), margins.max()

    def state_dict(self) -> dict[str, Tensor]:
        """Return mu and the epoch of its reading."""
        return {"mean_confidence:class0": self.mean_confidence.clone(), "epoch": torch.tensor(self.epoch).double()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: it has another number of classes.
        """
        saved = state["mean_confidence:class0"]
        if saved.shape != self.mean_confidence.shape:
            raise ValueError(f"saved margins are of {len(saved)} classes, this recipe has {len(self.mean_confidence)}")
        self.mean_confidence = saved.to(self.mean_confidence).clone()
        self.epoch = float(state["epoch"])

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return adacm_subset bool (the margin is reached), adacm_T its class's margin, adacm_gap max p - T."""
        margin = self.margins().to(scores.conf)[scores.hard]
        return {
            "adacm_subset": (scores.conf >= margin).cpu().numpy(),
            "adacm_gap": (scores.conf - margin).float().cpu().numpy(),
            "adacm_T": margin.float().cpu().numpy(),
        }

    def _move(self, device: torch.device) -> None:
        if self.mean_confidence.device != device:
            self.mean_confidence = self.mean_confidence.to(device)
