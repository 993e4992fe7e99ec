"""How fast is training on a feature bank? Run it alone: `python -m tests.benchmarks.bench_bank`.

A bank of HOG features of synthetic faces is built (view-features made per second), then whole recipes train on it. A
step reads the labeled, the weak and the strong view; their features are what is counted, and keepers, teacher,
calibration, optimiser and averaging are all in the time. Rates are per wall second on `--threads` threads, and per CPU
second of this process, which other programs beside it disturb less.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner import snapshot
from learner.bank import FeatureBank, adapt
from learner.bank_build import Plan, build
from learner.config import RunConfig
from learner.data import PixelCache, write_shards
from learner.encoders import HogEncoder
from learner.trainer import Trainer, TrainingData
from tests.benchmarks.bench_training import smooth_faces
from tests.learner.runs import view_of

NUM_CLASSES, LABELS, SIZE = 8, 400, 48


def rates(work: int, wall: float, cpu: float) -> dict[str, float]:
    return {"per_wall_second": round(work / wall), "per_cpu_second": round(work / cpu)}


def measure_build(folder: Path, rows: int) -> tuple[FeatureBank, dict[str, float]]:
    """Encode clean, weak and six strong views of every face."""
    write_shards(folder / "cache", np.tile(smooth_faces(256, SIZE), (rows // 256, 1, 1, 1)))
    cache, plan = PixelCache(folder / "cache", SIZE), Plan(np.arange(rows), np.zeros(0, np.int64))
    wall, cpu = time.perf_counter(), time.process_time()
    bank = build(folder / "bank", HogEncoder(), cache, plan)
    return bank, rates(8 * rows, time.perf_counter() - wall, time.process_time() - cpu)


def measure_training(bank: FeatureBank, method: str, batch: int, steps: int, threads: int) -> dict[str, Any]:
    """Train for some steps after a few to warm up; one image in each half makes three view-features."""
    config = RunConfig(method=method, steps=1_000_000, labeled_batch=batch, unlabeled_batch=batch, ramp_scope="run")
    config = adapt(config.replace(threads=threads, device="cpu"))
    view = view_of(list(range(LABELS)), [i % NUM_CLASSES for i in range(LABELS)], tuple("abcdefgh"))
    made = snapshot.assemble(config, NUM_CLASSES, feature_dim=bank.dim)
    data = TrainingData(bank, view, np.setdiff1d(bank.full_rows, view.rows.numpy()))
    trainer = Trainer(config, made.recipe, made.network, data)
    snapshot.begin(trainer)
    going = trainer.steps()
    for _ in range(20):
        next(going)
    read = batch * (1 + len(made.recipe.views))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(going)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"view_features": read, "step_ms": round(1e3 * wall / steps, 2), **rates(read * steps, wall, cpu)}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--methods", nargs="+", default=["lion", "fixmatch", "supervised"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report: dict[str, Any] = {"rows": given.rows, "threads": given.threads, "encoder": "hog", "size": SIZE}
    with tempfile.TemporaryDirectory() as folder:
        bank, report["build_view_features"] = measure_build(Path(folder), given.rows)
        report["training"] = {
            f"{method}, batch {batch}": measure_training(bank, method, batch, given.steps, given.threads)
            for method in given.methods
            for batch in given.batches
        }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
