"""What a step does to batches and to the network beside training it: join, split, draw, keep statistics still."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from learner import draws
from learner.draws import Rows
from learner.parts import NetOut


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are; batches are still normalised by their own."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed what dropout and gates draw from, on this device alone.

    `torch.manual_seed` also files a call, with its whole stack, for every kind of device that has not been started: in
    every step, for good.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def join(parts: list[Tensor]) -> Tensor:
    """Put batches of images (channels last) or of features together."""
    if len(parts) == 1:
        return parts[0]
    joined = torch.cat(parts)
    return joined.contiguous(memory_format=torch.channels_last) if joined.dim() == 4 else joined


def visits(rows: Rows) -> list[Rows]:
    """Split the positions of rows (B,) into groups without a repeated row, as `state.visits_in_order` does."""
    numbers = draws.copies(rows)
    return [np.flatnonzero(numbers == turn) for turn in range(int(numbers.max(initial=-1)) + 1)]


def sample(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    """Draw at most so many rows without replacement, ascending."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def split(out: NetOut, sizes: dict[str, int]) -> dict[str, NetOut]:
    """Take a joint output apart by view."""
    parts: dict[str, NetOut] = {}
    start = 0
    for name, size in sizes.items():
        cut = slice(start, start + size)
        parts[name] = NetOut(out.f_raw[cut], out.f[cut], out.z[cut], {n: v[cut] for n, v in out.aux.items()})
        start += size
    return parts
