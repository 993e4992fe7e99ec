"""Does a recipe on a feature bank beat the fast learner? `python -m tests.benchmarks.bench_probe GRID_YAML OUT BANK`.

Reads a finished grid (`python -m learner benchmark`) that ran on a bank and fits the annotation loop's calibrated
logistic regression to the same labels and the same clean features, then pairs every method with it, image by image.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.loop.fast import FastLearner, Supervision
from learner.bank import FeatureBank
from learner.benchmark.bootstrap import paired_bootstrap
from learner.benchmark.grid import Grid
from learner.benchmark.tables import Group, Run, gather
from learner.data import load_view
from learner.evaluate import evaluate

F32 = NDArray[np.float32]


def unit(bank: FeatureBank, rows: NDArray[np.int64]) -> F32:
    """Return the clean features of rows at length one, as the fast learner takes them."""
    features = bank.gather(rows, np.zeros(len(rows), np.int64)).astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


def fit(run: Run, bank: FeatureBank, balance: bool) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Fit the fast learner to the labels of a run; return its metrics, and which evaluated images it reads right."""
    view = load_view(run.folder / "view.npz")
    rows = view.rows.numpy()
    none = np.zeros(len(rows), np.bool_)
    answers = Supervision(
        rows,
        np.eye(len(view.classes), dtype=np.bool_)[view.given.numpy()],
        view.target.numpy(),
        none,
        np.ones(len(rows), np.float32),
    )
    began = time.process_time()
    model = FastLearner(len(view.classes), balance=balance).refresh(unit(bank, rows), answers)
    seen, _, truth = run.right()
    probs = model.predict(unit(bank, seen))
    found = evaluate(probs, truth, view.classes)
    report = {"balanced": found.balanced, "overall": found.overall, "ece": found.ece, "log_loss": found.log_loss}
    return report | {"seconds": time.process_time() - began}, probs.argmax(axis=1) == truth


def compare(groups: list[Group], bank: FeatureBank, balance: bool) -> dict[str, Any]:
    """Pair every method of one data set and split with the fast learner on the same seeds."""
    fitted = {seed: fit(run, bank, balance) for seed, run in groups[0].runs.items()}
    reports = [report for report, _ in fitted.values()]
    mean = {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
    spread = float(np.std([report["balanced"] for report in reports], ddof=1)) if len(reports) > 1 else None
    table: dict[str, Any] = {"fast learner": {**mean, "balanced_std": spread, "seeds": len(fitted)}}
    for group in groups:
        seeds = sorted(group.runs.keys() & fitted.keys())
        right = np.stack([group.runs[seed].right()[1] for seed in seeds])
        theirs = np.stack([fitted[seed][1] for seed in seeds])
        gain = paired_bootstrap(right, theirs, group.runs[seeds[0]].right()[2])
        table[group.method.title] = {"gain": gain.mean, "low": gain.low, "high": gain.high, "seeds": gain.seeds}
    return table


def main() -> None:
    """Print one JSON document: by split, the fast learner's metrics and every method's gain over it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--balance", action="store_true", help="give every class the same weight")
    given = parser.parse_args()
    bank = FeatureBank(given.bank)
    splits: dict[str, list[Group]] = {}
    for group in gather(Grid.load(given.grid), given.out):
        splits.setdefault(group.split, []).append(group)
    report = {split: compare(groups, bank, given.balance) for split, groups in splits.items()}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
