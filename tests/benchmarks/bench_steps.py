"""How fast is a training step against the papers' loops? `python -m tests.benchmarks.bench_steps`.

Both sides train the same recipe (losses, keepers, adapters) with the same backbone, batch and size on two cores, in
turn. The papers' loop: images augmented one by one with torchvision in two DataLoader workers (one for labeled, one for
unlabeled images), one forward for every view, labels from the student, default memory layout, the optimiser and the
average entry by entry. Ours: as the tool runs it (averaged teacher, joint forward), in float32 and in bfloat16.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from learner import snapshot
from learner.config import RunConfig
from learner.data import PixelCache, write_shards
from learner.models import Ema, Network, run
from learner.parts import Batch, NetOut, Recipe
from learner.trainer import Trainer, TrainingData
from tests.benchmarks.bench_views import PerImage
from tests.benchmarks.setting import NUM_CLASSES, paused_workers, smooth_faces, summary
from tests.learner.runs import view_of

LABELED, POOL = 256, 1024


class EntryByEntry(Ema[Network]):
    """The averaged network as the public codes keep it."""

    @torch.no_grad()
    def update(self, network: nn.Module, lifetime_step: int) -> None:
        m = self.decay(lifetime_step)
        for old, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            old.copy_(m * old + (1 - m) * new if old.is_floating_point() else new)


class Indexed(PerImage):
    """Views of one image with its position."""

    def __getitem__(self, index: int) -> Any:
        where = int(np.random.default_rng(index).integers(len(self.images)))
        return where, [make(self.images[where]) for make in self.make]


class PapersLoop(Trainer):
    """The same recipe in the loop that the public codes share."""

    def __init__(self, config: RunConfig, recipe: Recipe, network: Network, data: TrainingData, images: np.ndarray):
        recipe = replace(recipe, forward_mode="separate", pseudo_source="student_train", batchnorm="update")
        super().__init__(config, recipe, network.to(memory_format=torch.contiguous_format), data)
        self.ema = EntryByEntry(self.raw, config.ema)
        for group in self.optimizer.param_groups:
            group["foreach"] = False
        self.names = sorted(recipe.views)
        self.loaders = [
            self._loader(images[:LABELED], ("l",), config.labeled_batch),
            self._loader(images[LABELED:], tuple(name[0] for name in self.names), config.unlabeled_batch),
        ]

    @staticmethod
    def _loader(images: np.ndarray, kinds: tuple[str, ...], batch: int) -> Iterator[Any]:
        return iter(DataLoader(Indexed(images, kinds), batch, num_workers=1))

    def _batch(self, step: int) -> Batch:
        (index, (x,)), (where, views) = next(self.loaders[0]), next(self.loaders[1])
        columns = {name: column[index] for name, column in self._view.items()}
        return Batch(
            index, x, unlabeled_rows=where + LABELED, views=dict(zip(self.names, views, strict=True)), **columns
        )

    def _forward(self, batch: Batch) -> dict[str, NetOut]:
        self.network.train()
        remop = any(keeper.name == "centers" for keeper in self.recipe.keepers)
        outs = {"l": run(self.network, batch.x)}
        for name, x in batch.views.items():
            # ReMoP's code reads the weak view without gradient; the others keep it.
            with torch.set_grad_enabled(name in self.recipe.grad_views or not remop):
                outs[name] = run(self.network, x)
        return outs


def training_data(folder: Path, size: int) -> TrainingData:
    """Label the first faces of the shards in a folder; the rest is the pool."""
    given = [i % NUM_CLASSES for i in range(LABELED)]
    view = view_of(list(range(LABELED)), given, tuple("abcdefgh")[:NUM_CLASSES])
    return TrainingData(PixelCache(folder, size), view, np.arange(LABELED, LABELED + POOL))


class Sides:
    """One recipe in both loops."""

    def __init__(
        self, folder: Path, images: np.ndarray, method: str, batch: int, backbone: str, threads: int = 2
    ) -> None:
        config = RunConfig(method=method, image_size=images.shape[1], labeled_batch=batch, unlabeled_batch=batch)
        config = config.replace(steps=1 << 20, device="cpu", backbone={"name": backbone}, threads=threads)
        data = training_data(folder, images.shape[1])
        self.steps: dict[str, Iterator[int]] = {}
        for name, precision in (("float32", "32-true"), ("bfloat16", "bf16-mixed")):
            made = snapshot.assemble(config.replace(precision=precision), NUM_CLASSES)
            self.steps[name] = Trainer(config.replace(precision=precision), made.recipe, made.network, data).steps()
        made = snapshot.assemble(config, NUM_CLASSES)
        self.steps["papers"] = PapersLoop(config, made.recipe, made.network, data, images).steps()
        self.views = 1 + len(made.recipe.views)
        self.batch = batch

    def measure(self, rounds: int, each: int) -> dict[str, Any]:
        """Take turns: `wall` is what a user waits, `cpu` what all processes worked, less disturbed by others."""
        clocks = {"wall": time.perf_counter, "cpu": cpu_seconds}
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for turn in range(-1, rounds):
            for name, steps in self.steps.items():
                began = {kind: clock() for kind, clock in clocks.items()}
                with nullcontext() if name == "papers" else paused_workers():
                    for _ in range(each):
                        next(steps)
                for kind, clock in clocks.items():
                    if turn >= 0:
                        times[name, kind].append((clock() - began[kind]) / each)
        report: dict[str, Any] = {"views": self.views}
        for name in ("float32", "bfloat16"):
            for kind in clocks:
                found = summary(list(zip(times[name, kind], times["papers", kind], strict=True)))
                report[f"{name}_{kind}"] = {**found, "images_per_second": 2 * self.batch / found["ours_ms"] * 1e3}
        return report


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its workers that are still there."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["leaf", "leaf_official", "remop", "lion", "fixmatch"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="resnet10_small")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", type=int, default=3)
    given = parser.parse_args()
    images = smooth_faces(LABELED + POOL, given.size)
    report: dict[str, Any] = {"size": given.size, "batch": given.batch, "backbone": given.backbone, "cores": 2}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), images)
        for method in given.methods:
            report[method] = Sides(Path(folder), images, method, given.batch, given.backbone, given.threads).measure(
                given.rounds, given.each
            )
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
