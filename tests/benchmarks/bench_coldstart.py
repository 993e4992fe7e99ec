"""What the first answers are worth: `python -m tests.benchmarks.bench_coldstart FERPLUS.zip OUT`.

Answers to the faces that coverage puts first, with features of the shipped encoder or of HOG (ten samples of
candidates each), against random faces (ten draws). The pool is FER+'s training split without copies of validation
images; an answer is the crowd's plurality, and a face without one is an answer without a label. Both the probe and the
fast learner learn from them on the shipped encoder's features and read the validation split, where copies of training
images are left out. Writes table.json and table.md to OUT.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from annotator.acquisition import coverage, herding
from annotator.acquisition.pool import PoolView
from annotator.loop.fast import FastLearner, Supervision
from learner import hog
from learner.data import Rows
from learner.pretrain.encoder import FaceEncoder
from learner.pretrain.probe import ProbeResult, fit_and_predict, unit
from tests.benchmarks.bench_encoder import Faces, Features

ANSWERS = (50, 100, 200)
SEEDS = range(10)
console = Console(stderr=True)


class Shipped:
    """The shipped encoder's features of FER+ by row, each made once when it is first asked for."""

    def __init__(self, faces: Faces) -> None:
        self._encoder, self._pixels = FaceEncoder.load("shipped"), faces.pixels
        self._features = np.full((len(faces.pixels), self._encoder.dim), np.nan, np.float32)

    def __call__(self, rows: Rows) -> Features:
        new = np.unique(rows[np.isnan(self._features[rows, 0])])
        self._features[new] = self._encoder(self._pixels[new])
        return self._features[rows]


def covering(pool: Rows, read: Any, seed: int, count: int) -> Rows:
    """Return the first `count` rows of the order before any label."""
    open_, unknown = np.ones(len(pool), bool), np.full(len(pool), np.nan)
    kernel = herding.build(pool, read, open_, seed)
    view = PoolView(pool, open_, None, unknown, unknown, np.zeros(8), kernel, seed)
    return pool[np.argsort(-coverage.score(view), kind="stable")[:count]]


def read_fast(features: Features, label: Rows, rows: Rows, wanted: Features, num_classes: int) -> NDArray[np.int64]:
    """Predict as the loop's fast learner does."""
    allowed, none = np.eye(num_classes, dtype=bool)[label], np.zeros(len(label), bool)
    ones = np.ones(len(label), np.float32)
    said = Supervision(rows, allowed, np.zeros(allowed.shape, np.float32), none, ones)
    return FastLearner(num_classes).refresh(unit(features), said).predict(unit(wanted)).argmax(axis=1)


def measured(orders: list[Rows], total: int, faces: Faces, read: Shipped) -> dict[str, Any]:
    """Learn from the first `total` answers of each order."""
    num_classes, truth, wanted = len(faces.classes), faces.label[faces.val], read(faces.val)
    found: dict[str, list[Any]] = {"probe": [], "fast": []}
    counts = []
    for order in orders:
        rows = order[:total]
        rows = rows[np.isin(rows, faces.train)]
        label = faces.label[rows].astype(np.int64)
        counts.append(np.bincount(label, minlength=num_classes))
        found["probe"].append(fit_and_predict(read(rows), label, wanted))
        found["fast"].append(read_fast(read(rows), label, rows, wanted, num_classes))
    row: dict[str, Any] = {
        "labels": [int(c.sum()) for c in counts],
        "classes": [int((c > 0).sum()) for c in counts],
        "per_class": {name: [int(c[k]) for c in counts] for k, name in enumerate(faces.classes)},
    }
    for name, predicted in found.items():
        each = [ProbeResult(p[None], truth) for p in predicted]
        row[name] = {"balanced": [round(r.balanced, 4) for r in each], "overall": [round(r.overall, 4) for r in each]}
    return row


def as_markdown(rows: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Lay the table out: means over samples or draws, and their standard errors."""
    lines = [
        "| order | answers | classes seen | of the rarest three | balanced accuracy, probe | fast learner |",
        "|---" * 6 + "|",
    ]
    for name, totals in rows.items():
        for total, row in totals.items():
            rare = [f"{c} {np.mean(row['per_class'][c]):.1f}" for c in ("disgust", "contempt", "fear")]
            cells = [name, str(total), f"{np.mean(row['classes']):.1f}", ", ".join(rare)]
            for kind in ("probe", "fast"):
                each = row[kind]["balanced"]
                cells.append(f"{np.mean(each):.3f} ± {np.std(each, ddof=1) / np.sqrt(len(each)):.3f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ferplus", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch, console.status("reading faces"):
        faces = Faces(asked.ferplus, Path(scratch))
    pool, read, most = faces.unlabeled, Shipped(faces), max(ANSWERS)
    projection = hog.fit(hog.describe(faces.pixels[faces.sample]))

    def described(rows: Rows) -> Features:
        return projection(hog.describe(faces.pixels[rows])).astype(np.float32)

    orders = {
        "random": [np.random.default_rng(seed).permutation(pool)[:most] for seed in SEEDS],
        "coverage, HOG": [covering(pool, described, seed, most) for seed in SEEDS],
        "coverage, shipped": [covering(pool, read, seed, most) for seed in SEEDS],
    }
    rows = {name: {total: measured(found, total, faces, read) for total in ANSWERS} for name, found in orders.items()}
    (asked.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (asked.out / "table.md").write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
