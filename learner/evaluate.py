"""Accuracy, overall and balanced, with the counts behind it (ALGORITHMS.md 13.2)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found on a labeled set.

    num: faces; overall: share that is right; balanced: mean recall over the classes present; recall, support: per
    class (recall is None for an absent class); confusion[i][j]: faces of class i read as j; ece: expected calibration
    error in [0, 1] over equal-width confidence bins; log_loss: mean negative log-probability of the truth, in nats.
    """

    num: int
    correct: int
    overall: float
    balanced: float
    recall: dict[str, float | None]
    support: dict[str, int]
    confusion: list[list[int]]
    ece: float
    log_loss: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def evaluate(probs: NDArray[np.float32], truth: NDArray[np.int64], classes: tuple[str, ...]) -> Evaluation:
    """Compare probabilities (N,K) with true class indices (N,).

    Raises:
        ValueError: nothing to evaluate, or shapes that do not match.
    """
    num, num_classes = len(truth), len(classes)
    if num == 0:
        raise ValueError("no face with a known truth to evaluate on")
    if probs.shape != (num, num_classes) or truth.min() < 0 or truth.max() >= num_classes:
        raise ValueError(
            f"probs {probs.shape} and truth in {truth.min()}..{truth.max()} do not fit {num_classes} classes"
        )
    pred = probs.argmax(axis=1)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (truth, pred), 1)
    support, hits = confusion.sum(axis=1), confusion.diagonal()
    present = support > 0
    recalls = hits / np.maximum(support, 1)
    picked = probs[np.arange(num), truth].astype(np.float64)
    return Evaluation(
        num=num,
        correct=int(hits.sum()),
        overall=float(hits.sum() / num),
        balanced=float(recalls[present].mean()),
        recall={name: float(recalls[i]) if present[i] else None for i, name in enumerate(classes)},
        support={name: int(support[i]) for i, name in enumerate(classes)},
        confusion=confusion.tolist(),
        ece=calibration_error(probs.max(axis=1), pred == truth),
        log_loss=float(-np.log(np.maximum(picked, 1e-12)).mean()),
    )


def calibration_error(conf: NDArray[np.float32], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Average |accuracy - confidence| over equal-width bins of confidence (N,), weighted by their size."""
    index = np.minimum((conf.astype(np.float64) * bins).astype(np.int64), bins - 1)
    size = np.bincount(index, minlength=bins)
    gap = np.bincount(index, right.astype(np.float64) - conf, minlength=bins)
    return float(np.abs(gap[size > 0]).sum() / len(conf))
