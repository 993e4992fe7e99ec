"""RandAugment's operations on many faces at once (ALGORITHMS.md 1.4), on uint8 (B,3,H,W) with one plane per channel.

They return values 0..255 as uint8 or int16, whichever is there first; none changes its input.

They do the image library's integer arithmetic: luminance in 16-bit shares, blends truncated after one product and one
sum, geometry to the nearest pixel in 16.16 fixed point with black outside. No result depends on the rest of a batch:
products and sums are kept apart, because a fused one rounds otherwise in the tail of a loop.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from learner.transfer import send

Magnitude = NDArray[np.float32]
Names = NDArray[np.str_]
Whole = NDArray[np.int64]
_ONE = 65536  # 1.0 in 16.16 fixed point


def auto_contrast(x: Tensor) -> Tensor:
    """Stretch every channel to 0..255; a flat channel stays."""
    planes = x.flatten(2)
    low, high = planes.amin(dim=2, keepdim=True).float(), planes.amax(dim=2, keepdim=True).float()
    spread = high - low
    stretched = planes.float().sub_(low).mul_(255 / spread.clamp(min=1)).clamp_(max=255)
    flat = spread == 0
    return _values(stretched.add_(torch.where(flat, low, 0.0))).view(x.shape)


def equalize(x: Tensor) -> Tensor:
    """Flatten the histogram of every channel."""
    planes = x.flatten(2).flatten(0, 1)
    count = _histograms(planes)
    bins = torch.arange(256, dtype=torch.int32, device=x.device)
    last = ((count > 0) * bins).amax(dim=1, keepdim=True)
    step = (planes.shape[1] - count.gather(1, last.long())) // 255
    before = count.cumsum(dim=1, dtype=torch.int32) - count
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step > 0, table, bins).to(torch.uint8)
    return table.gather(1, planes.long()).view(x.shape)


def _histograms(planes: Tensor) -> Tensor:
    """Count the values of uint8 (P,N) per plane: (P,256) int32."""
    rows = len(planes)
    if planes.device.type == "cpu":
        offset = torch.arange(0, 256 * rows, 256, dtype=torch.int32)[:, None]
        return torch.bincount((planes.int() + offset).flatten(), minlength=256 * rows).view(rows, 256).int()
    # Counting bins makes a GPU wait for the host; adding ones at given places does not.
    count = torch.zeros(rows, 256, dtype=torch.int32, device=planes.device)
    return count.scatter_add_(1, planes.long(), torch.ones_like(planes, dtype=torch.int32))


def posterize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest bits: magnitude (B,) in [4, 9) rounds down to 4..8 bits."""
    dropped = 2.0 ** (8 - magnitude.floor().clamp(1, 8))
    return x & (256 - dropped).to(torch.uint8)[:, None, None, None]


def solarize(x: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels at or above the threshold magnitude (B,) in [0, 256)."""
    # The threshold is spelled out along a row: comparing with one number per image is not vectorised on a CPU.
    threshold = magnitude.ceil().clamp(max=255).to(torch.uint8)[:, None, None, None]
    reached = (x >= threshold.expand(-1, 1, 1, x.shape[3]).contiguous()).view(torch.uint8).neg_()
    some = (magnitude <= 255).to(torch.uint8).neg_()[:, None, None, None]
    return x ^ reached.bitwise_and_(some)


def brightness(x: Tensor, share: Tensor) -> Tensor:
    """Move towards black; share (B,) of the original stays."""
    return _values(x.float().mul_(share[:, None, None, None]))


def contrast(x: Tensor, share: Tensor) -> Tensor:
    """Move towards the rounded mean luminance of the image; share (B,) of the original stays."""
    total = luminance(x).flatten(1).sum(dim=1, dtype=torch.int64)
    area = x.shape[2] * x.shape[3]
    mean = (2 * total + area) // (2 * area)
    return _blend(x, mean.float()[:, None, None, None], share)


def color(x: Tensor, share: Tensor) -> Tensor:
    """Move towards the luminance; share (B,) of the original stays."""
    return _blend(x, luminance(x).float()[:, None], share)


def sharpness(x: Tensor, share: Tensor) -> Tensor:
    """Move towards a blur, 3×3 ones around a five over 13, the outermost pixels as they are; share (B,) stays."""
    width, area = x.shape[3], x.shape[2] * x.shape[3]
    wide = x.flatten(2).to(torch.int16)
    # Sums run along the whole plane; what wraps around its sides is put right at the end.
    three = wide[:, :, : -2 * width] + wide[:, :, width:-width]
    three += wide[:, :, 2 * width :]
    inner = slice(width + 1, area - width - 1)
    total = three[:, :, :-2] + three[:, :, 1:-1]
    total += three[:, :, 2:]
    total += wide[:, :, inner] * 4
    image = x.float()
    base = image.clone()
    base.flatten(2)[:, :, inner] = total.float().add_(6.5).mul_(1 / 13).floor_()
    sides = slice(None, None, width - 1)
    base[..., sides] = image[..., sides]
    return _values(image.sub_(base).mul_(share[:, None, None, None]).add_(base))


def luminance(x: Tensor) -> Tensor:
    """Return the rounded luminance (B,H,W) int32 of (B,3,H,W)."""
    red, green, blue = x.unbind(dim=1)
    total = red.int().mul_(19595).add_(green.int().mul_(38470)).add_(blue.int().mul_(7471))
    return total.add_(_ONE // 2).bitwise_right_shift_(16)


def _blend(x: Tensor, base: Tensor, share: Tensor) -> Tensor:
    return _values(x.float().sub_(base).mul_(share[:, None, None, None]).add_(base))


def _values(image: Tensor) -> Tensor:
    # The caller copies them into uint8: a CPU takes four times as long from float to uint8 directly.
    return image.to(torch.int16)


def slide(x: Tensor, down: Whole, across: Whole, source: Whole | None = None, unit: int = 1) -> Tensor:
    """Move whole rows: row y of result b is row down[b,y] of image source[b] (or b), from column across[b,y] on.

    x (N,…,H,L) uint8 with L bytes a row; down, across (B,H), the latter in steps of `unit` bytes; source (B,); black
    outside. One copy of contiguous bytes per row.
    """
    height, length = x.shape[-2:]
    planes = math.prod(x.shape[1:-2])
    offset = np.clip(across * unit, -length, length)
    margin = int(np.abs(offset).max(initial=0))
    stride = length + 2 * margin
    padded = F.pad(x.reshape(-1, height, length), (margin, margin, 0, 1))  # the last row of every plane is black
    row = np.where((down >= 0) & (down < height), down, height)
    image = np.arange(len(down)) if source is None else source
    start = (image[:, None] * (planes * (height + 1)) + row) * stride + (offset + margin)
    plane = torch.arange(planes, device=x.device)[:, None] * ((height + 1) * stride)
    index = send(start, x.device)[:, None] + plane
    windows = padded.flatten().unfold(0, length, 1)
    return windows.index_select(0, index.flatten()).view(len(down), *x.shape[1:])


def turn(x: Tensor, matrices: Whole) -> Tensor:
    """Resample (B,3,H,W) by maps (B,2,3) from output to input pixels in 16.16 fixed point: nearest, black outside."""
    count, channels, height, width = x.shape
    maps = send(matrices.astype(np.int32), x.device)[:, :, :, None, None]
    right = torch.arange(width, dtype=torch.int32, device=x.device)
    below = torch.arange(height, dtype=torch.int32, device=x.device)[:, None]

    def place(axis: int, most: int) -> Tensor:
        line = maps[:, axis, 0] * right
        return (line + (maps[:, axis, 1] * below + maps[:, axis, 2])).bitwise_right_shift_(16).clamp_(-1, most)

    padded = F.pad(x, (1, 1, 1, 1)).flatten(2)  # what lies outside reads the black frame
    index = place(1, height).mul_(width + 2).add_(place(0, width)).add_(width + 3).long().view(count, 1, -1)
    return padded.gather(2, index.expand(-1, channels, -1)).view(x.shape)


def zoom(x: Tensor, windows: NDArray[np.float32], mirrored: NDArray[np.bool_]) -> Tensor:
    """Scale windows of (B,3,s,s) uint8 up to the whole image: bicubic, in uint8 again.

    windows (B,4): left, top, width, height in shares of the side, inside the image; mirrored (B,): flipped as well.
    """
    side = x.shape[-1]
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    left, top, width, height = windows[:, :, None].transpose(1, 0, 2)
    across = 2 * (left + width * np.where(mirrored[:, None], 1 - centre, centre)) - 1
    down = 2 * (top + height * centre) - 1
    grid = torch.stack(
        [
            send(across, x.device)[:, None, :].expand(-1, side, -1),
            send(down, x.device)[:, :, None].expand(-1, -1, side),
        ],
        dim=3,
    )
    out = F.grid_sample(x.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def slid_rows(names: Names, magnitude: Magnitude, size: int) -> tuple[Whole, Whole]:
    """Return what `slide` needs for ShearX (about the first row), TranslateX and TranslateY (shares of the side)."""
    base = np.arange(size)
    amount = magnitude.astype(np.float64)[:, None]
    shear, sideways = (names == "ShearX")[:, None], (names == "TranslateX")[:, None]
    slope = fixed(np.where(shear, amount, 0))
    across = (fixed(0.5 + np.where(shear, amount * 0.5, np.where(sideways, amount * size, 0))) + slope * base) >> 16
    return base + (fixed(0.5 + np.where(shear | sideways, 0, amount * size)) >> 16), across


def turning(names: Names, magnitude: Magnitude, size: int) -> Whole:
    """Return the maps (B,2,3) that `turn` needs for Rotate (degrees, about the centre) and ShearY (first column)."""
    rotate, magnitude = names == "Rotate", magnitude.astype(np.float64)
    angle, shear = np.deg2rad(np.where(rotate, magnitude, 0.0)), np.where(rotate, 0.0, magnitude)
    cos, sin = np.cos(angle), np.sin(angle)
    middle = size / 2
    maps = np.stack([cos, -sin, middle - middle * (cos - sin), sin + shear, cos, middle - middle * (sin + cos)], axis=1)
    maps = maps.reshape(-1, 2, 3)
    maps[:, :, 2] += maps[:, :, 0] * 0.5 + maps[:, :, 1] * 0.5
    return fixed(maps)


def fixed(value: NDArray[np.float64]) -> Whole:
    """Round to 16.16 fixed point."""
    return np.floor(value * _ONE + 0.5).astype(np.int64)
