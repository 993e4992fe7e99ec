"""How much expression features hold: a linear reading of few labels (unit length, logistic regression C = 30)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from learner import draws
from learner.errors import InputError

F32 = NDArray[np.float32]
Labels = NDArray[np.int64]
C = 30.0
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Predictions (seeds, n) of the probed images, and what they amount to, averaged over the seeds."""

    predicted: Labels
    truth: Labels

    @property
    def balanced(self) -> float:
        """Mean over classes of the share found."""
        return float(np.mean(self.per_class))

    @property
    def per_class(self) -> NDArray[np.float64]:
        """Share found of each class that occurs, (K,)."""
        hit = self.predicted == self.truth
        return np.array([hit[:, self.truth == k].mean() for k in np.unique(self.truth)])

    @property
    def overall(self) -> float:
        """Share found of all images."""
        return float((self.predicted == self.truth).mean())


def unit(features: F32) -> F32:
    """Scale every line (n,d) to length one; a zero line stays zero."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)


def fit_and_predict(train: F32, label: Labels, test: F32) -> Labels:
    """Fit the multinomial regression with balanced class weights to unit features, predict others."""
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
    predicted: Labels = model.fit(unit(train), label).predict(unit(test))
    return predicted


def draw_per_class(label: Labels, rows: Labels, total: int, seed: int) -> Labels:
    """Draw total // K of `rows` for every class of label (n,), nested in `total` for one seed.

    Raises:
        InputError: fewer than one per class.
    """
    classes = np.unique(label[rows])
    count = total // len(classes)
    if count < 1:
        raise InputError(f"{total} labels are fewer than {len(classes)} classes")
    return draws.per_class(label, rows, dict.fromkeys(classes.tolist(), count), seed)


def probe(
    features: F32, label: Labels, train: Labels, test: Labels, total: int, seeds: Sequence[int] = SEEDS
) -> ProbeResult:
    """Learn from `total` class-balanced labels of rows `train`, read rows `test`; features (n,d), label (n,)."""
    found = []
    for seed in seeds:
        chosen = draw_per_class(label, train, total, seed)
        found.append(fit_and_predict(features[chosen], label[chosen], features[test]))
    return ProbeResult(np.stack(found), label[test])


def probe_votes(
    features: F32, votes: NDArray[np.float64], label: Labels, train: Labels, test: Labels, total: int, seed: int
) -> Labels:
    """Learn from `total` random rows with one drawn crowd answer each; a drawn entry beyond the classes is skipped.

    votes (n,V): counts per class, then others (unknown, no face); V >= K. Returns the predictions of `test`.
    """
    rng = np.random.default_rng(seed)
    num_classes = int(label.max()) + 1
    rows = rng.permutation(train)[:total]
    share = votes[rows] / np.maximum(votes[rows].sum(axis=1, keepdims=True), 1e-12)
    answer = (share.cumsum(axis=1) > rng.random((len(rows), 1))).argmax(axis=1)
    usable = answer < num_classes
    return fit_and_predict(features[rows[usable]], answer[usable].astype(np.int64), features[test])


def cross_validate(features: F32, label: Labels, folds: int = 5) -> dict[str, float] | None:
    """Probe people's own labels (n,) by cross-validation; None below two classes of `folds` labels each."""
    classes, count = np.unique(label, return_counts=True)
    enough = np.isin(label, classes[count >= folds])
    if (count >= folds).sum() < 2:
        return None
    features, label = features[enough], label[enough]
    predicted = np.empty(len(label), np.int64)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, label):
        predicted[test] = fit_and_predict(features[train], label[train], features[test])
    result = ProbeResult(predicted[None], label)
    return {"balanced_accuracy": result.balanced, "accuracy": result.overall, "labels": float(len(label))}
