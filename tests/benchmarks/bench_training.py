"""How fast is a training step, and against what? Run it alone: `python -m tests.benchmarks.bench_training`.

Two comparisons, both on one thread and on the same synthetic faces, in CPU seconds of this process:

* strong views: our batched operations against torchvision's v2 transforms called image by image;
* a LION step: ours, with the student's own pseudo-labels, against the usual research loop (images augmented and stacked
  one by one, one forward per view, no teacher), with the same network and losses; and ours as the annotation loop runs
  it, with the averaged model as teacher, which is two more forwards.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from learner import snapshot
from learner.augment import CUTOUT_FILL, MEAN, STD, Augmenter
from learner.config import RunConfig
from learner.data import PixelCache, write_shards
from learner.models import run
from learner.predict import Predictor
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import view_of

NUM_CLASSES = 8


def seconds_each(work: Callable[[int], object], times: int) -> float:
    """Return CPU seconds per call, after one call to warm up."""
    work(0)
    began = time.process_time()
    for index in range(1, times + 1):
        work(index)
    return (time.process_time() - began) / times


def smooth_faces(num: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 230, (num, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])


def per_image_transforms(size: int) -> tuple[v2.Compose, v2.Compose]:
    """Write the papers' weak and strong views with torchvision, for one image at a time."""
    padding = max(1, round(size * 8 / 224))
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    crop = v2.RandomApply([v2.RandomCrop(size, padding=padding)], p=0.5)
    fill = tuple((c / 255 - m) / s for c, m, s in zip(CUTOUT_FILL, MEAN, STD, strict=True))
    hole = v2.RandomErasing(p=1.0, scale=(0.0005, 0.25), ratio=(1.0, 1.0), value=list(fill))
    weak = v2.Compose([crop, v2.RandomHorizontalFlip(), *last])
    strong = v2.Compose([v2.RandAugment(num_ops=3, magnitude=10), crop, v2.RandomHorizontalFlip(), *last, hole])
    return weak, strong


class Setting:
    """Faces, labels and a trainer at one image and batch size."""

    def __init__(self, folder: Path, size: int, batch: int, backbone: str, pseudo_source: str) -> None:
        self.size, self.batch = size, batch
        self.images = smooth_faces(1024, size)
        write_shards(folder, self.images)
        self.cache = PixelCache(folder, size)
        config = RunConfig(image_size=size, labeled_batch=batch, unlabeled_batch=batch)
        config = config.replace(method="lion", options={"pseudo_source": pseudo_source})
        self.config = config.replace(threads=1, device="cpu", steps=10_000, backbone={"name": backbone})
        view = view_of(list(range(256)), [i % NUM_CLASSES for i in range(256)], tuple("abcdefgh"))
        made = snapshot.assemble(self.config, NUM_CLASSES)
        data = TrainingData(self.cache, view, np.arange(256, 1024))
        self.trainer = Trainer(self.config, made.recipe, made.network, data)


def compare_views(setting: Setting, times: int) -> dict[str, float]:
    make = Augmenter(setting.config.augment, setting.size, 0, torch.device("cpu"))
    _, strong = per_image_transforms(setting.size)
    rows = np.arange(setting.batch)
    pixels = setting.images[: setting.batch]
    ours = seconds_each(lambda step: make.strong(make.upload(pixels), rows, step), times)
    theirs = seconds_each(lambda _: torch.stack([strong(Image.fromarray(p)) for p in pixels]), times)
    return {"ours_ms": ours * 1e3, "per_image_ms": theirs * 1e3, "ratio": theirs / ours}


def compare_steps(setting: Setting, times: int) -> dict[str, float]:
    steps = setting.trainer.steps()
    ours = seconds_each(lambda _: next(steps), times)
    naive = NaiveStep(setting)
    theirs = seconds_each(lambda _: naive(), times)
    return {"ours_ms": ours * 1e3, "naive_ms": theirs * 1e3, "ratio": theirs / ours, "steps_per_second": 1 / ours}


class NaiveStep:
    """The usual loop: per-image work, four separate forwards, default memory layout, EMA entry by entry."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        made = snapshot.assemble(setting.config, NUM_CLASSES)
        self.network = made.network.to(memory_format=torch.contiguous_format)
        self.average = snapshot.assemble(setting.config, NUM_CLASSES).network
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 5e-4, foreach=False)
        self.weak, self.strong = per_image_transforms(setting.size)
        self.rng = np.random.default_rng(0)

    def load(self, low: int, high: int) -> tuple[list[Image.Image], torch.Tensor]:
        index = self.rng.integers(low, high, self.setting.batch)
        return [Image.fromarray(self.setting.images[i]) for i in index], torch.from_numpy(index % NUM_CLASSES)

    def __call__(self) -> None:
        labeled, y = self.load(0, 256)
        unlabeled, _ = self.load(256, 1024)
        self.network.train()
        z = run(self.network, torch.stack([self.weak(i) for i in labeled])).z
        z_w = run(self.network, torch.stack([self.weak(i) for i in unlabeled])).z
        z_s = run(self.network, torch.stack([self.strong(i) for i in unlabeled])).z
        p = z_w.detach().softmax(dim=1)
        negative = p <= 0.05
        loss = torch.nn.functional.cross_entropy(z, y)
        loss = loss + 0.85 * torch.nn.functional.cross_entropy(z_s, p.argmax(dim=1))
        for logits, weight in ((z_w, 0.45), (z_s, 0.06)):
            loss = (
                loss - weight * (torch.log1p(-logits.softmax(dim=1).clamp(max=1 - 1e-5)) * negative).sum(dim=1).mean()
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                old.copy_(0.999 * old + 0.001 * new if old.is_floating_point() else new)


def prediction_rate(setting: Setting, rows: int) -> dict[str, float]:
    trainer = setting.trainer
    predictor = Predictor(
        trainer.ema.network, trainer.recipe.scorer, setting.cache, trainer.augmenter, setting.config.predict_batch
    )
    chosen = np.arange(rows) % 1024
    plain = seconds_each(lambda _: predictor.predict(chosen), 1)
    views = seconds_each(lambda _: predictor.predict(chosen, "strong"), 1)
    return {"images_per_second": rows / plain, "with_strong_view": rows / views}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="resnet10_small")
    parser.add_argument("--times", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"size": given.size, "batch": given.batch, "backbone": given.backbone, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        kind = (Path(folder), given.size, given.batch, given.backbone)
        setting = Setting(*kind, "student_train")
        report["strong_views"] = compare_views(setting, given.times)
        report["lion_step"] = compare_steps(setting, given.times)
        steps = Setting(*kind, "ema_eval").trainer.steps()
        report["lion_step_with_teacher_ms"] = seconds_each(lambda _: next(steps), given.times) * 1e3
        report["prediction"] = prediction_rate(setting, 512)
    sys.stdout.write(json.dumps(report, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
