"""What keepers share: doing nothing by default, and knowing when the warm-up is over."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from learner.parts import Clock, Event, LabelView, Scores, StepContext, Survey


class KeeperOptions(BaseModel):
    """Options of one keeper: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Warmup:
    """The first `share` of a run in benchmarks, the first `steps` of the lifetime in the annotation loop."""

    share: float = 1 / 3
    steps: int = 2000

    def __call__(self, clock: Clock) -> bool:
        """Tell whether it still lasts."""
        if clock.ramp_scope == "run":
            return clock.progress < self.share
        return clock.lifetime_step < self.steps


class IdleKeeper:
    """A keeper that keeps nothing; real ones override what they need."""

    name = "idle"

    def before_target(self, ctx: StepContext) -> None:
        """Do nothing."""

    def before_loss(self, ctx: StepContext) -> None:
        """Do nothing."""

    def observe(self, ctx: StepContext) -> None:
        """Do nothing."""

    def survey(self, survey: Survey) -> None:
        """Do nothing."""

    def on_event(self, event: Event) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take an empty state."""

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return no column."""
        return {}


def given_labels(rows: Tensor, view: LabelView) -> tuple[Tensor, Tensor]:
    """Find rows (N,) among people's answers: their position in the view (N,), and whether they have one (N,) bool."""
    if not len(view.rows):
        return torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    position = torch.searchsorted(view.rows, rows).clamp(max=len(view.rows) - 1)
    return position, view.rows[position] == rows
