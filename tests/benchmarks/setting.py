"""What the training benchmarks share: smooth synthetic faces, the papers' views with torchvision, paired timing."""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from learner.augment import CUTOUT_FILL, MEAN, STD

NUM_CLASSES = 8


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


@contextmanager
def paused_workers() -> Iterator[None]:
    """Hold this process's children still: workers that fetch ahead would work in the other side's turn."""
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid or 0, signal.SIGSTOP)
    try:
        yield
    finally:
        for child in children:
            os.kill(child.pid or 0, signal.SIGCONT)


def paired(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    each: int = 1,
) -> dict[str, float]:
    """Time two pieces of work in turn, so that what else the machine does meets both: milliseconds and ratios.

    `each` repeats the work inside a round. The ratio is the median over rounds; its quartiles say how sure it is.
    """
    ours(), theirs()
    pairs = []
    for turn in range(rounds):
        took = {}
        for work in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
            began = clock()
            for _ in range(each):
                work()
            took[work] = (clock() - began) / each
        pairs.append((took[ours], took[theirs]))
    return summary(pairs)


def summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return medians in milliseconds of (ours, theirs), the quartiles of theirs over ours, and the ratio of all time.

    The last counts what happens in some rounds only, like making a block of views.
    """
    low, middle, high = statistics.quantiles([theirs / ours for ours, theirs in pairs], n=4)
    return {
        "ours_ms": statistics.median(ours for ours, _ in pairs) * 1e3,
        "theirs_ms": statistics.median(theirs for _, theirs in pairs) * 1e3,
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_of_totals": sum(theirs for _, theirs in pairs) / sum(ours for ours, _ in pairs),
    }
