"""Which method trains next, and when: each counts the labels that it has not learned from, and they take turns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from annotator.chains import chains, longest_waiting
from annotator.loop.labels import LabelArrays
from annotator.records import Snapshot
from annotator.settings import LearnerSettings

FIRST_BACKOFF_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 1800.0


@dataclass(slots=True)
class _Method:
    """What is known of one method. `unlearned_since` is when labels began to wait for it."""

    learned_seq: int = 0
    unlearned_since: float | None = None
    failures: int = 0
    not_before: float = float("-inf")


class Rotation:
    """The methods of the settings, in turn. One that fails rests ever longer and holds up nobody else."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._snapshots: Sequence[Snapshot] = ()
        self._methods = {name: _Method() for name in settings.methods}

    def know(self, snapshots: Sequence[Snapshot]) -> None:
        """Learn of every snapshot, oldest first."""
        self._snapshots = snapshots
        for name, chain in chains(snapshots).items():
            if name in self._methods:
                self._methods[name].learned_seq = max(s.label_seq for s in chain)

    def next(self, now: float) -> str:
        """Return the method whose last round is longest ago; resting ones come last."""
        rested = [name for name, method in self._methods.items() if now >= method.not_before]
        return longest_waiting(self._snapshots, rested or list(self._methods))

    def due(self, usable: LabelArrays, now: float) -> tuple[str, str] | None:
        """Return the method to train now and why, None when no round is due.

        `usable` holds the labels to train on, `now` is a monotonic time in seconds.
        """
        enough = len(usable) >= self._settings.min_labels and len(np.unique(usable.given[usable.given >= 0])) >= 2
        reasons = {}
        for name, method in self._methods.items():
            reason = self._reason(method, int((usable.stamp > method.learned_seq).sum()), now)
            if enough and reason is not None and now >= method.not_before:
                reasons[name] = reason
        if not reasons:
            return None
        name = longest_waiting(self._snapshots, list(reasons))
        return name, reasons[name]

    def _reason(self, method: _Method, new: int, now: float) -> str | None:
        if new == 0:
            method.unlearned_since = None
            return None
        if method.unlearned_since is None:
            method.unlearned_since = now
        if new >= self._settings.new_labels:
            return f"{new} new labels"
        waited = now - method.unlearned_since
        if waited >= self._settings.max_wait_minutes * 60:
            return f"{new} new labels for {waited / 60:.0f} minutes"
        return None

    def succeeded(self, name: str) -> None:
        """Note that a round of a method was published."""
        if name in self._methods:
            self._methods[name] = _Method(self._methods[name].learned_seq)

    def failed(self, name: str, now: float) -> float:
        """Note that a round of a method failed; return for how many seconds it rests, 0 for one that takes no turns."""
        method = self._methods.get(name)
        if method is None:
            return 0.0
        pause = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**method.failures)
        method.failures += 1
        method.not_before = now + pause
        return pause
