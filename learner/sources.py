"""Where a step's network inputs come from: augmented pixels, or a bank of features that were made beforehand."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from learner.augment import Augmenter
from learner.bank import BankSource, FeatureBank
from learner.boxes import Boxes, into_window, of_rows
from learner.config import RunConfig
from learner.data import Balanced, Cycle, PixelCache, Rows

BLOCK_BYTES = 1 << 26  # room for views made ahead of the step that needs them
BLOCK_STEPS = 32  # beyond this, a larger block is no faster


class Source(Protocol):
    """Network inputs by row. A view is a pure function of (name, row, step), whatever batch it is made in."""

    def clean(self, rows: Rows) -> Tensor:
        """Return the un-augmented inputs of rows (B,)."""
        ...

    def view(self, name: str, rows: Rows, steps: Rows) -> Tensor:
        """Return one view ("l", "w", "w2", "s", "s2") of rows (B,) at lifetime steps (B,)."""
        ...

    def boxes(self, name: str, rows: Rows, step: int | Rows) -> Boxes | None:
        """Return where the faces lie in that view, (B,4) with NaN where not known; None without any boxes."""
        ...


class PixelSource:
    """Views of faces from the pixel cache; `boxes` are the faces' places in it by row, where they are known."""

    def __init__(self, cache: PixelCache, augmenter: Augmenter, boxes: Boxes | None = None) -> None:
        self.cache, self.augmenter, self._boxes = cache, augmenter, boxes

    def clean(self, rows: Rows) -> Tensor:
        """Return normalised faces (B,3,H,W), channels last."""
        return self.augmenter.normalise(self.augmenter.upload(self.cache.gather(rows)))

    def view(self, name: str, rows: Rows, steps: Rows) -> Tensor:
        """Return a weak or strong view (B,3,H,W), channels last."""
        make = self.augmenter.strong if name.startswith("s") else self.augmenter.weak
        return make(self.augmenter.upload(self.cache.gather(rows)), rows, steps, name)

    def boxes(self, name: str, rows: Rows, step: int | Rows) -> Boxes | None:
        """Return boxes (B,4) moved as the view's pixels are."""
        if self._boxes is None:
            return None
        return into_window(of_rows(self._boxes, rows), *self.augmenter.windows(rows, step, name))


class Ahead:
    """Views of the coming steps, made for a block of steps at once so that every operation sees many images.

    `samplers` and the views they feed are given by name; "l" reads the labeled rows. What a step gets does not depend
    on the block. The first step is made alone; it shows how many fit into `block_bytes`.
    """

    def __init__(
        self,
        source: Source,
        samplers: Mapping[str, Cycle | Balanced],
        block_bytes: int = BLOCK_BYTES,
        block_steps: int = BLOCK_STEPS,
    ) -> None:
        self.source, self.samplers = source, samplers
        self._bytes, self._most = block_bytes, block_steps
        self._block = 1
        self._first = 0
        self._made: list[dict[str, Tensor]] = []

    def at(self, step: int, stop: int | None = None) -> dict[str, Tensor]:
        """Return every view of one lifetime step; none is made for step `stop` or after it."""
        if not self._first <= step < self._first + len(self._made):
            self._made = []  # before the next ones need its room
            most = self._block if stop is None else min(self._block, stop - step)
            self._first, self._made = step, self._make(step, max(1, most))
            size = sum(x.numel() * x.element_size() for x in self._made[0].values())
            self._block = max(1, min(self._most, self._bytes // max(1, size)))
        return dict(self._made[step - self._first])

    def _make(self, first: int, count: int) -> list[dict[str, Tensor]]:
        made: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for name, sampler in self.samplers.items():
            rows = [sampler.at(step) for step in range(first, first + count)]
            steps = np.repeat(np.arange(first, first + count), [len(part) for part in rows])
            views = self.source.view(name, np.concatenate(rows), steps)
            for step, view in enumerate(torch.split(views, [len(part) for part in rows])):
                made[step][name] = view
        return made


def make_source(
    faces: PixelCache | FeatureBank, config: RunConfig, device: torch.device, boxes: Boxes | None = None
) -> Source:
    """Make the source of a run for its device."""
    if isinstance(faces, FeatureBank):
        return BankSource(faces, config.seed, device)
    return PixelSource(faces, Augmenter(config.augment, config.image_size, config.seed, device), boxes)
