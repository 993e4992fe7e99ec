"""What keepers share: doing nothing by default, and knowing when the warm-up is over."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from learner.parts import Clock, Event, LabelView, Scores, StepContext, Survey
from learner.state import SampleTable


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
    reads_labeled = False

    def start_run(self, unlabeled: Tensor) -> None:
        """Do nothing."""

    def reserve(self, num_rows: int, device: torch.device) -> None:
        """Do nothing."""

    def before_target(self, ctx: StepContext) -> None:
        """Do nothing."""

    def before_loss(self, ctx: StepContext) -> None:
        """Do nothing."""

    def observe(self, ctx: StepContext) -> None:
        """Do nothing."""

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for none."""
        return None

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


class TableKeeper(IdleKeeper):
    """A keeper with state by row."""

    table: SampleTable

    def reserve(self, num_rows: int, device: torch.device) -> None:
        """Make room in the table."""
        self.table.to(device).reserve(num_rows)


def change_of_sample(table: SampleTable, event: Event) -> None:
    """Follow the samples that come and go; a sample that comes back starts afresh."""
    row = torch.tensor([event.row])
    if event.kind == "sample_removed":
        table.remove(row)
    elif event.kind == "sample_added":
        table.restore(row)


@dataclass(frozen=True, slots=True)
class Answers:
    """People's answers to rows (N,), on the CPU: has any (N,) bool, given (N,) or -1, answer and excluded (N,K) bool.

    answer holds one class or a candidate set, nothing for vote shares and bare "not these".
    """

    labeled: Tensor
    given: Tensor
    answer: Tensor
    excluded: Tensor

    @staticmethod
    def of(rows: Tensor, view: LabelView, num_classes: int) -> "Answers":
        """Look up rows, in any order, in the view."""
        known = view.rows.cpu()
        if not len(known):
            none = torch.zeros(len(rows), num_classes, dtype=torch.bool)
            return Answers(none[:, 0], torch.full((len(rows),), -1), none, none.clone())
        at = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
        labeled = known[at] == rows
        given = torch.where(labeled, view.given.cpu()[at], -1)
        excluded = view.excluded.cpu()[at] & labeled[:, None]
        answer = answered_classes(given, view.allowed.cpu()[at], excluded)[0] & labeled[:, None]
        return Answers(labeled, given, answer, excluded)


def answered_classes(given: Tensor, allowed: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes (B,K) bool that answers name, and which answers (B,) bool are candidate sets.

    One class: that class. A candidate set: it without the "not these". Anything else, which allows every class that is
    not excluded: none.
    """
    one = F.one_hot(given.clamp(min=0), allowed.shape[1]).bool()
    possible = allowed & ~excluded
    several = (given < 0) & possible.any(dim=1) & (possible.sum(dim=1) < (~excluded).sum(dim=1))
    return torch.where((given >= 0)[:, None], one, possible & several[:, None]), several
