"""What keepers of one vector per class share: label counts, the age of the pool mean, and state by name."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from learner.keepers.base import IdleKeeper
from learner.parts import Clock, Event

MEAN_WINDOW = 200  # steps that the running pool mean looks back on
_DIRTY_SHARE = 0.05  # of a class's labels changed: its vector is rebuilt


class ClassVectorKeeper(IdleKeeper, ABC):
    """Count people's labels per class (K,) and those that changed since the class was last rebuilt.

    The tensors named in `_STATE`, with their class roles, are the state.
    """

    _STATE: tuple[str, ...]

    def __init__(self, num_classes: int) -> None:
        """Start without labels."""
        self.labels = torch.zeros(num_classes, dtype=torch.int64)
        self.changed = torch.zeros(num_classes, dtype=torch.int64)
        self.mean_steps = torch.zeros((), dtype=torch.int64)

    def dirty(self) -> Tensor:
        """Tell (K,) bool which classes had more than 5 % of their labels changed since they were last rebuilt."""
        return self.changed > _DIRTY_SHARE * self.labels.clamp(min=1)

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for the clean view at the start of a round."""
        return "x" if clock.step == 0 else None

    @abstractmethod
    def forget(self) -> None:
        """Drop vectors whose features are no more; the survey makes new ones."""

    def on_event(self, event: Event) -> None:
        """Count labels and changed labels; a new round estimates the pool mean anew, starting from the old one."""
        if event.kind == "round_started":
            self.mean_steps = self.mean_steps.clamp(max=1)
        elif event.kind == "features_changed":
            self.forget()
        if event.kind in ("label_changed", "label_removed") and event.old >= 0:
            self.labels[event.old] = (self.labels[event.old] - 1).clamp(min=0)
        if event.kind in ("labelled", "label_changed") and event.new >= 0:
            self.labels[event.new] += 1
        if event.kind in ("label_changed", "label_removed"):
            for index in {event.old, event.new} - {-1}:
                self.changed[index] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of `_STATE`."""
        return {key: getattr(self, key.partition(":")[0]).clone() for key in self._STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: it has another shape; it belongs to another encoder or class list.
        """
        for key in self._STATE:
            name = key.partition(":")[0]
            mine, saved = getattr(self, name), state[key]
            if saved.shape != mine.shape:
                raise ValueError(
                    f"saved {self.name} have shape {tuple(saved.shape)}, this recipe's {tuple(mine.shape)}"
                )
            setattr(self, name, saved.to(mine).clone())

    def _move(self, device: torch.device) -> None:
        if self.labels.device != device:
            for key in self._STATE:
                name = key.partition(":")[0]
                setattr(self, name, getattr(self, name).to(device))
