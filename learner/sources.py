"""Where a step's network inputs come from: augmented pixels, or a bank of features that were made beforehand."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from learner.augment import Augmenter
from learner.bank import BankSource, FeatureBank
from learner.config import RunConfig
from learner.data import Balanced, Cycle, PixelCache, Rows


class Source(Protocol):
    """Network inputs by row. A view is a pure function of (name, row, step), whatever batch it is made in."""

    def clean(self, rows: Rows) -> Tensor:
        """Return the un-augmented inputs of rows (B,)."""
        ...

    def view(self, name: str, rows: Rows, steps: Rows) -> Tensor:
        """Return one view ("l", "w", "w2", "s", "s2") of rows (B,) at lifetime steps (B,)."""
        ...


class PixelSource:
    """Views of faces from the pixel cache."""

    def __init__(self, cache: PixelCache, augmenter: Augmenter) -> None:
        self.cache, self.augmenter = cache, augmenter

    def clean(self, rows: Rows) -> Tensor:
        """Return normalised faces (B,3,H,W), channels last."""
        return self.augmenter.normalise(self.augmenter.upload(self.cache.gather(rows)))

    def view(self, name: str, rows: Rows, steps: Rows) -> Tensor:
        """Return a weak or strong view (B,3,H,W), channels last."""
        pixels = self.augmenter.upload(self.cache.gather(rows))
        make = self.augmenter.strong if name.startswith("s") else self.augmenter.weak
        parts = [make(pixels[steps == step], rows[steps == step], int(step), name) for step in np.unique(steps)]
        return parts[0] if len(parts) == 1 else torch.cat(parts).contiguous(memory_format=torch.channels_last)


class Ahead:
    """Views of the coming steps. `samplers` and the views they feed are given by name; "l" reads the labeled rows."""

    def __init__(self, source: Source, samplers: Mapping[str, Cycle | Balanced]) -> None:
        self.source, self.samplers = source, samplers

    def at(self, step: int) -> dict[str, Tensor]:
        """Return every view of one lifetime step."""
        made = {}
        for name, sampler in self.samplers.items():
            rows = sampler.at(step)
            made[name] = self.source.view(name, rows, np.full(len(rows), step, np.int64))
        return made


def make_source(faces: PixelCache | FeatureBank, config: RunConfig, device: torch.device) -> Source:
    """Make the source of a run for its device."""
    if isinstance(faces, FeatureBank):
        return BankSource(faces, config.seed, device)
    return PixelSource(faces, Augmenter(config.augment, config.image_size, config.seed, device))
