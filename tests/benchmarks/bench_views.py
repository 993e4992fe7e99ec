"""How fast are views made, against torchvision's image by image? `python -m tests.benchmarks.bench_views`.

Both sides make the same number of views of the same faces, in turn. `cpu`: seconds of one thread. `wall`: both are
given two cores, ours as two threads, torchvision as a DataLoader with two workers. A step's views are two weak ones
(labeled, unlabeled) and a strong one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from learner.augment import Augmenter
from learner.config import AugmentConfig
from tests.benchmarks.setting import paired, paused_workers, per_image_transforms, smooth_faces


class PerImage(Dataset[list[torch.Tensor]]):
    """Views of one image at a time, as a worker process makes them."""

    def __init__(self, images: np.ndarray, kinds: tuple[str, ...]) -> None:
        weak, strong = per_image_transforms(images.shape[1])
        self.images = [Image.fromarray(image) for image in images]
        self.make = [strong if kind == "s" else weak for kind in kinds]

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [make(self.images[index % len(self.images)]) for make in self.make]


def ours(images: np.ndarray, kinds: tuple[str, ...], block: int) -> Callable[[], object]:
    make = Augmenter(AugmentConfig(), images.shape[1], 0, torch.device("cpu"))
    rows, steps = np.arange(block), np.repeat(np.arange(block // 32), 32)
    pixels = images[rows % len(images)]

    def work() -> None:
        with paused_workers():
            for kind in kinds:
                (make.strong if kind == "s" else make.weak)(make.upload(pixels), rows, steps, kind)

    return work


def compare(images: np.ndarray, kinds: tuple[str, ...], rounds: int, cores: int) -> dict[str, float]:
    """Compare views per second; a block of ours has the 64 MB of images that the trainer makes ahead."""
    size = images.shape[1]
    block = max(32, min(1024, (1 << 26) // (len(kinds) * 12 * size * size) // 32 * 32))
    torch.set_num_threads(cores)
    data = PerImage(images, kinds)
    if cores == 1:
        part = min(block, 64)
        times = paired(
            ours(images, kinds, block),
            lambda: torch.utils.data.default_collate([data[i] for i in range(part)]),
            rounds,
            time.process_time,
        )
    else:
        part = block
        loader: Iterator[Any] = iter(DataLoader(data, 32, num_workers=cores, shuffle=False))
        times = paired(ours(images, kinds, block), lambda: [next(loader) for _ in range(block // 32)], rounds)
        del loader
    scale = block / part
    return {
        "ours_us_per_image": times["ours_ms"] * 1e3 / block,
        "torchvision_us_per_image": times["theirs_ms"] * 1e3 / part,
        **{name: times[name] * scale for name in ("ratio", "ratio_low", "ratio_high")},
    }


def measure(size: int, rounds: int) -> dict[str, Any]:
    images = smooth_faces(512, size)
    report: dict[str, Any] = {}
    for name, kinds in (("strong", ("s",)), ("weak", ("w",)), ("step", ("l", "w", "s"))):
        report[name] = {
            "cpu": compare(images, kinds, rounds, 1),
            "wall_two_cores": compare(images, kinds, rounds, 2),
        }
    return report


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64, 112])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    report = {str(size): measure(size, given.rounds) for size in given.sizes}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
