"""Weak and strong views of a batch of faces, made on the device from uint8 (ALGORITHMS.md 1.4).

Every draw comes from (seed, step, row, view) through `learner.draws`, so a view is the same in any batch, on any device
and after a resume. Operations run on groups of images, never image by image.

Deviations: shears turn about the centre (the papers' image library: the top left corner); geometry is bilinear.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from learner import draws
from learner.config import AugmentConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUTOUT_FILL = (125, 123, 114)
PURPOSES = {"l": 1, "w": 2, "w2": 3, "s": 4, "s2": 5}
BLENDS = {"Brightness", "Color", "Contrast", "Sharpness"}
GEOMETRY = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
RANGES = {
    **dict.fromkeys(sorted(BLENDS), (0.05, 0.95)),
    "Rotate": (-30.0, 30.0),
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (-0.3, 0.3)),
    "Posterize": (4.0, 9.0),
    "Solarize": (0.0, 256.0),
}
_CELL = {"ShearX": (0, 1), "ShearY": (1, 0), "TranslateX": (0, 2), "TranslateY": (1, 2)}
_WEAK_DRAWS = 4


class Augmenter:
    """Makes the views of a batch: `weak` and `strong` take uint8 and return normalised float32."""

    def __init__(self, config: AugmentConfig, image_size: int, seed: int, device: torch.device) -> None:
        self.config = config
        self.size = image_size
        self.padding = round(config.crop_padding * image_size)
        if config.crop_padding > 0:
            self.padding = max(1, self.padding)
        self.seed = seed
        self.device = device
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(STD, device=device).view(1, 3, 1, 1) * 255
        self._fill = torch.tensor(CUTOUT_FILL, dtype=torch.uint8, device=device).view(1, 3, 1, 1)

    def upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Bring faces (B,H,W,3) to the device as (B,3,H,W) uint8 without changing their layout in memory."""
        return torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def normalise(self, x: Tensor) -> Tensor:
        """Turn uint8 (B,3,H,W) into float32 with ImageNet statistics, channels last."""
        return ((x.float() - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def weak(self, x: Tensor, rows: NDArray[np.int64], step: int, view: str = "w") -> Tensor:
        """Pad and crop with the configured probability, flip with the configured probability; normalised float32."""
        return self.normalise(self.weak_pixels(x, rows, step, view))

    def strong(self, x: Tensor, rows: NDArray[np.int64], step: int, view: str = "s") -> Tensor:
        """Apply the drawn operations, the cut-out, then the weak chain; normalised float32."""
        return self.normalise(self.weak_pixels(self.strong_pixels(x, rows, step, view), rows, step, view))

    def weak_pixels(self, x: Tensor, rows: NDArray[np.int64], step: int, view: str) -> Tensor:
        """Do the weak chain on uint8 (B,3,H,W) and return uint8 of the same shape."""
        draw = draws.uniform(self.seed, step, rows, PURPOSES[view], _WEAK_DRAWS)
        pad, base = self.padding, np.arange(self.size)
        shift = np.floor(draw[:, 1:3] * (2 * pad + 1)).astype(np.int64) - pad
        shift[draw[:, 0] >= self.config.crop_probability] = 0
        columns = base[None, :] + shift[:, 1:2]
        flip = draw[:, 3] < self.config.flip_probability
        columns[flip] = columns[flip, ::-1]
        padded = F.pad(x, (pad, pad, pad, pad))
        iy = self._send(base[None, :] + shift[:, 0:1] + pad)
        ix = self._send(columns + pad)
        batch = torch.arange(len(rows), device=self.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[batch, iy[:, :, None], ix[:, None, :]].permute(0, 3, 1, 2)

    def strong_pixels(self, x: Tensor, rows: NDArray[np.int64], step: int, view: str) -> Tensor:
        """Draw and apply the operations and the cut-out on uint8 (B,3,H,W); the input is left as it is."""
        count = self.config.num_operations
        draw = draws.uniform(self.seed, step, rows, PURPOSES[view] + 16, 2 * count + 3)
        names = self.config.operations
        chosen = np.minimum((draw[:, :count] * len(names)).astype(np.int64), len(names) - 1)
        x = x.clone()
        for slot in range(count):
            self._apply(x, [names[i] for i in chosen[:, slot]], draw[:, count + slot])
        return self._cut_out(x, draw[:, 2 * count :]) if self.config.cutout > 0 else x

    def _apply(self, x: Tensor, names: list[str], draw: NDArray[np.float32]) -> None:
        """Apply one operation per image, in place: images are grouped so that each kernel sees many."""
        low, high = np.array([RANGES.get(name, (0.0, 0.0)) for name in names]).reshape(-1, 2).T
        magnitude = (low + draw * (high - low)).astype(np.float32)
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            groups.setdefault("geometry" if name in GEOMETRY else "blend" if name in BLENDS else name, []).append(index)
        for group, members in sorted(groups.items()):
            if group == "Identity":
                continue
            where = self._send(np.array(members))
            strength = self._send(magnitude[members])
            if group == "geometry":
                matrices = self._send(affine_matrices([names[i] for i in members], magnitude[members]))
                x[where] = warp(x[where], matrices)
            elif group == "blend":
                x[where] = blend(x[where], [names[i] for i in members], strength)
            else:
                x[where] = POINTWISE[group](x[where], strength)

    def _cut_out(self, x: Tensor, draw: NDArray[np.float32]) -> Tensor:
        side = draw[:, 0] * self.config.cutout * self.size
        centre = draw[:, 1:3] * self.size
        low = np.maximum(centre - side[:, None] / 2, 0).astype(np.int64)
        high = np.minimum(low + side[:, None], self.size).astype(np.int64)
        base = np.arange(self.size)[None, None, :]
        inside = self._send((base >= low[:, :, None]) & (base < high[:, :, None]))
        mask = inside[:, 0, :, None] & inside[:, 1, None, :]
        return torch.where(mask[:, None], self._fill, x)

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)


def auto_contrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel of uint8 (B,3,H,W) to 0..255; a flat channel stays."""
    low, high = x.amin(dim=(2, 3), keepdim=True).float(), x.amax(dim=(2, 3), keepdim=True).float()
    spread = high - low
    scale = torch.where(spread > 0, 255 / spread.clamp(min=1), torch.ones_like(spread))
    stretched = ((x.float() - low) * scale).clamp(0, 255)
    return torch.where(spread > 0, stretched, x.float()).to(torch.uint8)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Flatten the histogram of every channel of uint8 (B,3,H,W)."""
    flat = x.flatten(2).flatten(0, 1).long()
    hist = torch.zeros(len(flat), 256, dtype=torch.int64, device=x.device)
    hist.scatter_add_(1, flat, torch.ones_like(flat))
    bins = torch.arange(256, device=x.device)
    last = ((hist > 0) * bins).amax(dim=1, keepdim=True)
    step = (flat.shape[1] - hist.gather(1, last)) // 255
    table = ((hist.cumsum(dim=1) - hist + step // 2) // step.clamp(min=1)).clamp(0, 255)
    table = torch.where(step > 0, table, bins.expand_as(table))
    return table.gather(1, flat).view(x.shape).to(torch.uint8)


def posterize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest bits: magnitude (B,) in [4, 9) rounds down to 4..8 bits."""
    drop = (8 - magnitude.floor().clamp(1, 8)).to(torch.uint8)[:, None, None, None]
    return (x >> drop) << drop


def solarize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels at or above the threshold magnitude (B,) in [0, 256)."""
    return torch.where(x.float() < magnitude[:, None, None, None], x, 255 - x)


POINTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Posterize": posterize,
    "Solarize": solarize,
}


def blend(x: Tensor, names: list[str], factor: Tensor) -> Tensor:
    """Move towards black, gray, the mean gray or a smoothed image: `factor` (B,) is the share of the original."""
    image = x.float()
    base = torch.zeros_like(image)
    for name, towards in (("Color", gray), ("Contrast", mean_gray), ("Sharpness", smooth)):
        members = [index for index, other in enumerate(names) if other == name]
        if members:
            where = torch.tensor(members, device=x.device)
            base[where] = towards(image[where])
    share = factor[:, None, None, None]
    return (image * share + base * (1 - share)).clamp(0, 255).to(torch.uint8)


def gray(image: Tensor) -> Tensor:
    """Return the luminance of (B,3,H,W) in every channel."""
    red, green, blue = image.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None].expand_as(image)


def mean_gray(image: Tensor) -> Tensor:
    """Return the rounded mean luminance of every image, (B,3,H,W)."""
    return gray(image).mean(dim=(2, 3), keepdim=True).round().expand_as(image)


def smooth(image: Tensor) -> Tensor:
    """Blur (B,3,H,W) with the 3×3 kernel of ones around a five; the outermost pixels stay."""
    blurred = image.clone()
    total = F.avg_pool2d(image, 3, stride=1) * 9 + 4 * image[:, :, 1:-1, 1:-1]
    blurred[:, :, 1:-1, 1:-1] = (total / 13).round()
    return blurred


def affine_matrices(names: list[str], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Build (B,2,3) maps from output to input in coordinates that run from -1 to 1 over the image."""
    matrices = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (len(names), 1, 1))
    for index, (name, value) in enumerate(zip(names, magnitude, strict=True)):
        if name == "Rotate":
            c, s = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value))
            matrices[index, :, :2] = [[c, -s], [s, c]]
        else:
            matrices[(index, *_CELL[name])] = value if name.startswith("Shear") else 2 * value
    return matrices


def warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Resample uint8 (B,3,H,W) by affine maps (B,2,3), bilinear, black outside."""
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return (
        F.grid_sample(x.float(), grid, padding_mode="zeros", align_corners=False).round().clamp(0, 255).to(torch.uint8)
    )
