"""Weak and strong views of many faces, made on the device from uint8 (ALGORITHMS.md 1.4).

Every draw comes from (seed, step, row, view) through `learner.draws`, so a view is the same in any batch, in a block of
several steps, on any device and after a resume. Operations run on groups of images, never image by image.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import draws, operations
from learner.config import AugmentConfig
from learner.draws import Rows
from learner.transfer import send

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUTOUT_FILL = (125, 123, 114)
PURPOSES = {"l": 1, "w": 2, "w2": 3, "s": 4, "s2": 5}
RANGES = {
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.05, 0.95)),
    "Rotate": (-30.0, 30.0),
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (-0.3, 0.3)),
    "Posterize": (4.0, 9.0),
    "Solarize": (0.0, 256.0),
}
PIXELWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": lambda x, _: operations.auto_contrast(x),
    "Brightness": operations.brightness,
    "Color": operations.color,
    "Contrast": operations.contrast,
    "Equalize": lambda x, _: operations.equalize(x),
    "Posterize": operations.posterize,
    "Sharpness": operations.sharpness,
    "Solarize": operations.solarize,
}
SLIDES, TURNS = ("ShearX", "TranslateX", "TranslateY"), ("Rotate", "ShearY")
_GROUPS = ("Identity", *PIXELWISE, *SLIDES, *TURNS)  # images are sorted so: one kernel serves all slides, one all turns
_KERNEL = dict.fromkeys(SLIDES, "slide") | dict.fromkeys(TURNS, "turn")
_LIMITS = np.array([RANGES.get(name, (0.0, 0.0)) for name in _GROUPS]).T
_WEAK_DRAWS = 4
ASPECTS = (3 / 4, 4 / 3)  # of a random resized crop
_PART_BYTES = 1 << 19  # of uint8 that a CPU works on at a time, so that its float copy stays near


class Augmenter:
    """Makes the views of a batch: `weak` and `strong` take uint8 and return normalised float32.

    `step` is one lifetime step for the whole batch or one for each row (B,).
    """

    def __init__(self, config: AugmentConfig, image_size: int, seed: int, device: torch.device) -> None:
        self.config = config
        self.size = image_size
        self.padding = round(config.crop_padding * image_size)
        if config.crop_padding > 0:
            self.padding = max(1, self.padding)
        self.seed = seed
        self.device = device
        # Statistics are spelled out along a row of pixels, RGBRGB…, which a CPU subtracts without a loop over channels.
        self._mean = torch.tensor(MEAN, device=device).repeat(image_size) * 255
        self._scale = 1 / (torch.tensor(STD, device=device).repeat(image_size) * 255)
        self._fill = torch.tensor(CUTOUT_FILL, dtype=torch.uint8, device=device).view(1, 3, 1, 1)

    def upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Bring faces (B,H,W,3) to the device as (B,3,H,W) uint8 without changing their layout in memory."""
        return send(pixels, self.device).permute(0, 3, 1, 2)

    def normalise(self, x: Tensor) -> Tensor:
        """Turn uint8 (B,3,H,W) into float32 with ImageNet statistics, channels last."""
        out = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
        lines = out.permute(0, 2, 3, 1).flatten(2)
        for part in self._parts(len(x)):
            if x.is_contiguous():
                out[part] = x[part].float()
            else:
                lines[part] = x[part].permute(0, 2, 3, 1).flatten(2)
            lines[part].sub_(self._mean).mul_(self._scale)
        return out

    def _parts(self, count: int) -> Iterator[slice]:
        """Cut a batch into parts that fit a CPU's cache; on other devices it stays whole."""
        size = max(1, _PART_BYTES // (3 * self.size**2)) if self.device.type == "cpu" else max(1, count)
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def weak(self, x: Tensor, rows: Rows, step: int | Rows, view: str = "w") -> Tensor:
        """Crop as configured, flip with the configured probability; normalised float32."""
        return self.normalise(self.weak_pixels(x, rows, step, view))

    def strong(self, x: Tensor, rows: Rows, step: int | Rows, view: str = "s") -> Tensor:
        """Apply the drawn operations, the cut-out, then the weak chain; normalised float32."""
        return self.normalise(self.weak_pixels(self.strong_pixels(x, rows, step, view), rows, step, view))

    def weak_pixels(self, x: Tensor, rows: Rows, step: int | Rows, view: str) -> Tensor:
        """Do the weak chain on uint8 (B,3,H,W) and return uint8 of the same shape and layout in memory."""
        if not len(rows):
            return x
        if self.config.crop_area < 1:
            return operations.zoom(x, *self.windows(rows, step, view))
        shift, flipped = self._shifted(rows, step, view)
        down = np.arange(self.size) + shift[:, :1]
        across = np.broadcast_to(np.where(flipped, -shift[:, 1], shift[:, 1])[:, None], down.shape)
        mirrored = self._send(np.flatnonzero(flipped))
        # A crop of a face and one of its mirror are both runs of a row in memory: one copy per row does the rest.
        source = np.arange(len(rows))
        source[flipped] = len(rows) + np.arange(len(mirrored))
        if x.is_contiguous():
            both = torch.cat([x, x.index_select(0, mirrored).flip(3)])
            return operations.slide(both, down, across, source)
        faces = x.permute(0, 2, 3, 1)
        both = torch.cat([faces, faces.index_select(0, mirrored).flip(2)])
        lines = operations.slide(both.flatten(2), down, across, source, unit=3)
        return lines.view(faces.shape).permute(0, 3, 1, 2)

    def _shifted(self, rows: Rows, step: int | Rows, view: str) -> tuple[Rows, NDArray[np.bool_]]:
        """Draw by how many pixels (B,2) down and across a padded crop starts, and which views (B,) are mirrored."""
        draw = draws.uniform(self.seed, step, rows, PURPOSES[view], _WEAK_DRAWS)
        shift = np.floor(draw[:, 1:3] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        shift[draw[:, 0] >= self.config.crop_probability] = 0
        return shift, draw[:, 3] < self.config.flip_probability

    def windows(self, rows: Rows, step: int | Rows, view: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Say which part of each face a view shows: left, top, width, height (B,4) in shares; mirrored (B,).

        These are the draws of the weak chain, so what lies in a face moves with them exactly as its pixels do; the
        operations of a strong view are left out.
        """
        shift, mirrored = self._shifted(rows, step, view)
        if self.config.crop_area == 1:
            whole = np.ones((len(rows), 2))
            return np.concatenate([shift[:, ::-1] / self.size, whole], axis=1).astype(np.float32), mirrored
        draw = draws.uniform(self.seed, step, rows, PURPOSES[view] + 32, 4).astype(np.float64)
        area = self.config.crop_area + draw[:, 0] * (1 - self.config.crop_area)
        low, high = np.log(np.maximum(ASPECTS[0], area)), np.log(np.minimum(ASPECTS[1], 1 / area))
        aspect = np.exp(low + draw[:, 1] * (high - low))  # among those that fit
        sides = np.sqrt(np.stack([area * aspect, area / aspect], axis=1))
        return np.concatenate([draw[:, 2:] * (1 - sides), sides], axis=1).astype(np.float32), mirrored

    def strong_pixels(self, x: Tensor, rows: Rows, step: int | Rows, view: str) -> Tensor:
        """Draw and apply the operations and the cut-out on uint8 (B,3,H,W); return contiguous uint8."""
        count = self.config.num_operations
        draw = draws.uniform(self.seed, step, rows, PURPOSES[view] + 16, 2 * count + 3)
        known = np.array([_GROUPS.index(name) for name in self.config.operations], dtype=np.int64)
        chosen = known[np.minimum((draw[:, :count] * len(known)).astype(np.int64), len(known) - 1)]
        low, high = _LIMITS
        magnitude = (low[chosen] + draw[:, count : 2 * count] * (high - low)[chosen]).astype(np.float32)
        place: Rows = np.arange(len(rows))  # where each image of the batch lies in x
        for slot in range(count):
            order = np.argsort(chosen[:, slot], kind="stable")
            x = x.index_select(0, self._send(place[order])).contiguous()
            self._apply(x, np.take(_GROUPS, chosen[order, slot]), magnitude[order, slot])
            place[order] = np.arange(len(rows))
        x = x.index_select(0, self._send(place)).contiguous()
        if self.config.cutout > 0:
            self._cut_out(x, draw[:, 2 * count :])
        return x

    def _apply(self, x: Tensor, names: NDArray[np.str_], magnitude: NDArray[np.float32]) -> None:
        """Apply one operation to every image of x, in place; images come sorted by operation."""
        strength = self._send(magnitude)
        kernel = np.array([_KERNEL.get(name, name) for name in names])
        edges = [0, *(np.flatnonzero(kernel[1:] != kernel[:-1]) + 1), len(kernel)]
        for start, end in pairwise(edges):
            for part in self._parts(end - start):
                here = slice(start + part.start, start + part.stop)
                if names[start] != "Identity":
                    x[here].copy_(self._operate(kernel[start], names[here], x[here], magnitude[here], strength[here]))

    def _operate(
        self, kernel: str, names: NDArray[np.str_], x: Tensor, magnitude: NDArray[np.float32], strength: Tensor
    ) -> Tensor:
        if kernel == "slide":
            return operations.slide(x, *operations.slid_rows(names, magnitude, self.size))
        if kernel == "turn":
            return operations.turn(x, operations.turning(names, magnitude, self.size))
        return PIXELWISE[kernel](x, strength)

    def _cut_out(self, x: Tensor, draw: NDArray[np.float32]) -> None:
        side = draw[:, 0] * self.config.cutout * self.size
        centre = draw[:, 1:3] * self.size
        low = np.maximum(centre - side[:, None] / 2, 0).astype(np.int64)
        high = np.minimum(low + side[:, None], self.size).astype(np.int64)
        base = np.arange(self.size)[None, None, :]
        inside = self._send(((base >= low[:, :, None]) & (base < high[:, :, None])) * np.uint8(255))
        for part in self._parts(len(x)):
            mask = inside[part, 0, :, None] & inside[part, 1, None, :]
            x[part] ^= (x[part] ^ self._fill).bitwise_and_(mask[:, None])

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self.device)
