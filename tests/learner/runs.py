"""Small run folders on generated patterns: what the annotation loop makes, in miniature."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.config import RunConfig
from learner.data import save_view, write_shards
from learner.parts import LabelView

SIZE = 24
CLASSES = ("plain", "bright", "striped", "framed")


def patterns(num: int, seed: int = 0, size: int = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images (num,size,size,3) of four textures under noise, and their classes in turn."""
    rng = np.random.default_rng(seed)
    label = np.arange(num) % len(CLASSES)
    images = rng.normal(110, 28, (num, size, size, 3))
    y, x = np.mgrid[:size, :size]
    for index, kind in enumerate(label):
        phase = rng.integers(0, 4)
        if kind == 1:
            images[index] += 70 * (np.hypot(y - rng.integers(6, 18), x - rng.integers(6, 18)) < 6)[..., None]
        elif kind == 2:
            images[index] += 45 * (((x + phase) // 3) % 2)[..., None]
        elif kind == 3:
            edge = np.minimum.reduce([x, y, size - 1 - x, size - 1 - y]) == 3 + phase % 2
            images[index] += 80 * edge[..., None]
    return images.clip(0, 255).astype(np.uint8), label


def view_of(rows: list[int], given: list[int], classes: tuple[str, ...] = CLASSES, stamps: Any = None) -> LabelView:
    """Make a label view of single answers; `stamps` default to 1, 2, 3 …"""
    order = np.argsort(rows)
    label = torch.tensor(given)[torch.from_numpy(order)]
    stamp = torch.arange(1, len(rows) + 1) if stamps is None else torch.tensor(stamps)[torch.from_numpy(order)]
    return LabelView(
        label_seq=int(stamp.max()),
        classes=classes,
        rows=torch.tensor(rows)[torch.from_numpy(order)],
        target=torch.nn.functional.one_hot(label, len(classes)).float(),
        allowed=torch.ones(len(rows), len(classes), dtype=torch.bool),
        excluded=torch.zeros(len(rows), len(classes), dtype=torch.bool),
        given=label,
        locked=torch.zeros(len(rows), dtype=torch.bool),
        stamp=stamp,
    )


def small_config(**changes: Any) -> RunConfig:
    """Return a configuration whose steps take milliseconds."""
    base = RunConfig(
        method="supervised",
        steps=20,
        image_size=SIZE,
        labeled_batch=8,
        unlabeled_batch=8,
        threads=1,
        device="cpu",
        log_every=5,
        checkpoint_every=10,
    )
    return base.replace(**{"backbone": {"name": "resnet10_small"}, **changes})


def write_run(
    folder: Path,
    config: RunConfig,
    view: LabelView,
    num: int = 80,
    held: int = 40,
    previous: Path | None = None,
    pool: list[int] | None = None,
) -> Path:
    """Write a run folder on `num` pool images and `held` more for reporting; the cache is beside it."""
    folder.mkdir(parents=True)
    cache = folder.parent / "cache"
    images, label = patterns(num + held)
    if not cache.exists():
        write_shards(cache, images)
    rows = np.arange(num) if pool is None else np.array(pool)
    save_view(folder / "view.npz", view)
    np.save(folder / "unlabeled.npy", np.setdiff1d(rows, view.rows.numpy()))
    np.save(folder / "all.npy", np.arange(num + held))
    np.savez(folder / "eval.npz", rows=np.arange(num, num + held), truth=label[num:])
    (folder / "pool.json").write_text(
        json.dumps({"cache": str(cache), "previous": str(previous) if previous else None, "image_size": SIZE})
    )
    config.save(folder / "config.json")
    return folder


def first_labels(per_class: int = 5) -> LabelView:
    """Return the true labels of the first images of `patterns`."""
    rows = list(range(per_class * len(CLASSES)))
    return view_of(rows, [row % len(CLASSES) for row in rows])
