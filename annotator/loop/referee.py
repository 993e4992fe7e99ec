"""Whether a snapshot's features are better than those that serve: judged on answers given after it (DESIGN 2.10).

Both feature sets get a fast learner fitted to the same frozen labels. Each later answer on a face outside them is then
predicted by both before it is used, and the log-losses are compared pair by pair. Only answers whose faces were chosen
without the model's opinion count (random and coverage arms): faces picked because the serving model was unsure of them
would speak against it by construction.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotator.features import FeatureShards, unit
from annotator.loop.fast import FastLearner, FastModel, Supervision, answer_losses
from annotator.loop.publish import features_of
from annotator.records import Annotation

FAIR_ARMS = frozenset({"random", "coverage"})
MIN_ANSWERS = 30
FILE = "referee.json"
_SPEAKS = frozenset({"label", "candidates", "not"})


@dataclass(slots=True)
class Tally:
    """Sums over paired differences: log-loss of the serving features minus that of the challenger's."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, differences: NDArray[np.float64]) -> None:
        """Count more answers (n,)."""
        self.count += len(differences)
        self.total += float(differences.sum())
        self.squares += float((differences**2).sum())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean advantage of the challenger in nats, 0 without answers."""
        return self.total / self.count if self.count else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, infinite below two answers."""
        if self.count < 2:
            return math.inf
        variance = max(0.0, self.squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(variance / self.count)

    def summary(self) -> str:
        """Say it in a few words."""
        error = f"{self.standard_error:.3f}" if self.count > 1 else "unknown"
        return f"{self.mean:+.3f} nats ± {error} on {self.count} answers"

    @property
    def better(self) -> bool:
        """Whether the challenger is better by more than one standard error on enough answers."""
        return self.count >= MIN_ANSWERS and self.mean > self.standard_error


class Case:
    """A method's newest snapshot against the serving features. The tally is kept in the snapshot's folder.

    Answers to earlier snapshots of the same challenge (same method, same serving features) count too: each was
    predicted by the snapshot that was newest at its time.
    """

    def __init__(
        self,
        folder: Path,
        serving: FeatureShards,
        classes: tuple[str, ...],
        earlier: Tally | None = None,
        heard_seq: int = 0,
    ) -> None:
        """Fit both learners to the labels that the snapshot in `folder` was trained on.

        `earlier` holds what the method's earlier snapshots have shown on the answers up to `heard_seq`.
        """
        self.folder = folder
        self.snapshot_id = folder.name
        self.serving_id = serving.info.id
        self._classes = classes
        with np.load(folder / "view.npz", allow_pickle=False) as view:
            self.label_seq = int(view["label_seq"])
            self._trained: NDArray[np.int64] = view["rows"]
            supervision = _supervision(view["rows"], view["allowed"], view["target"])
        self._rows, self._features, _ = features_of(folder)
        self._shards = serving
        self._theirs = _fit(unit(self._of_snapshot(self._trained)), supervision)
        self._ours = _fit(unit(serving.read(self._trained)), supervision)
        self.earlier = earlier or Tally()
        self.own = Tally()
        self.heard_seq = max(self.label_seq, heard_seq)
        self._restore()

    def _restore(self) -> None:
        path = self.folder / FILE
        if not path.is_file():
            return
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["serving"] == self.serving_id:
            self.own, self.earlier = Tally(*data["own"]), Tally(*data["earlier"])
            self.heard_seq = int(data["heard_seq"])

    @property
    def tally(self) -> Tally:
        """All answers that were heard in this challenge."""
        return self.earlier + self.own

    def hear(self, annotations: Iterable[Annotation], group_of: dict[int, int]) -> None:
        """Count answers given after the snapshot's labels were frozen; `group_of` maps rows to representatives."""
        rows, masks, last = [], [], self.heard_seq
        seen = set(self._trained.tolist())
        for a in annotations:
            if a.seq <= self.heard_seq:
                continue
            last = max(last, a.seq)
            row = group_of.get(a.row, a.row)
            mask = _allowed(a, self._classes)
            if mask is not None and a.user_id is not None and a.arm in FAIR_ARMS and row not in seen:
                seen.add(row)
                rows.append(row)
                masks.append(mask)
        if last == self.heard_seq:
            return
        if rows:
            self._compare(np.array(rows, dtype=np.int64), np.stack(masks))
        self.heard_seq = last
        self._save()

    def _compare(self, rows: NDArray[np.int64], allowed: NDArray[np.bool_]) -> None:
        ours, theirs = unit(self._shards.read(rows)), unit(self._of_snapshot(rows))
        both = ours.any(axis=1) & theirs.any(axis=1)
        if not both.any():
            return
        answers = _supervision(rows[both], allowed[both], np.zeros(allowed[both].shape, dtype=np.float32))
        loss_ours = answer_losses(self._ours.predict(ours[both]), answers)
        self.own.add(loss_ours - answer_losses(self._theirs.predict(theirs[both]), answers))

    def _of_snapshot(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        known = self._rows[at] == rows
        return np.where(known[:, None], self._features[at], 0).astype(np.float32)

    def _save(self) -> None:
        data = {
            "serving": self.serving_id,
            "own": [self.own.count, self.own.total, self.own.squares],
            "earlier": [self.earlier.count, self.earlier.total, self.earlier.squares],
            "heard_seq": self.heard_seq,
        }
        temporary = self.folder / f".{FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(self.folder / FILE)

    def summary(self) -> str:
        """Say how the challenge stands."""
        return f"{self.snapshot_id} against {self.serving_id}: {self.tally.summary()}"


def standing(folder: Path, serving_id: str) -> Tally | None:
    """Read how the snapshot in `folder` stands against the features `serving_id`; None when it has not stood there."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found = Tally(*data["own"]) + Tally(*data["earlier"]) if data["serving"] == serving_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _allowed(a: Annotation, classes: tuple[str, ...]) -> NDArray[np.bool_] | None:
    """Return which classes (K,) an answer leaves possible, None when it says nothing about them."""
    if a.kind not in _SPEAKS:
        return None
    named = np.array([slug in a.classes for slug in classes])
    mask = ~named if a.kind == "not" else named
    return mask if mask.any() and not mask.all() else None


def _supervision(rows: NDArray[np.int64], allowed: NDArray[np.bool_], target: NDArray[np.float32]) -> Supervision:
    # In a view vote shares are the rows that allow everything.
    is_soft: NDArray[np.bool_] = np.asarray(allowed.all(axis=1), dtype=bool)
    return Supervision(rows, allowed, target.astype(np.float32), is_soft, np.ones(len(rows), dtype=np.float32))


def _fit(features: NDArray[np.float32], supervision: Supervision) -> FastModel:
    return FastLearner(supervision.allowed.shape[1]).refresh(features, supervision)
