"""How fast is training, and against what? Run it alone: `python -m tests.benchmarks.bench_training`.

Everything at once, as one JSON document: `views`, ours against torchvision's image by image (`bench_views`); `steps`,
ours against the papers' loops (`bench_steps`); `state`, per-image state at a million rows (`bench_state`);
`prediction`, images per second of the averaged model. Each part has a command of its own with finer options.
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
from learner.config import RunConfig
from learner.data import write_shards
from learner.predict import Predictor
from learner.trainer import Trainer
from tests.benchmarks import bench_state, bench_steps, bench_views
from tests.benchmarks.setting import NUM_CLASSES, smooth_faces


def prediction_rate(folder: Path, images: np.ndarray, backbone: str) -> dict[str, float]:
    """Measure images per second with and without a strong reading beside the clean one."""
    config = RunConfig(method="lion", image_size=images.shape[1], device="cpu").replace(backbone={"name": backbone})
    made = snapshot.assemble(config, NUM_CLASSES)
    trainer = Trainer(config, made.recipe, made.network, bench_steps.training_data(folder, images.shape[1]))
    place = trainer.fabric.device
    predictor = Predictor(trainer.ema.network, made.recipe, trainer.source, place, None)
    rows = np.arange(512)

    def rate(views: Any) -> float:
        predictor.predict(rows[:64], views)
        began = time.perf_counter()
        predictor.predict(rows, views)
        return len(rows) / (time.perf_counter() - began)

    return {"images_per_second": rate("none"), "with_strong_view": rate("strong")}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="resnet10_small")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    report: dict[str, Any] = {"views": {str(s): bench_views.measure(s, given.rounds) for s in (48, 64, 112)}}
    torch.set_num_threads(2)
    images = smooth_faces(bench_steps.LABELED + bench_steps.POOL, given.size)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), images)
        report["steps"] = {
            method: bench_steps.Sides(Path(folder), images, method, given.batch, given.backbone).measure(
                given.rounds, 3
            )
            for method in ("leaf", "remop", "lion", "fixmatch")
        }
        report["prediction"] = prediction_rate(Path(folder), images, given.backbone)
    report["state"] = bench_state.measure(1_000_000, 64, 200)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
