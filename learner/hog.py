"""Histograms of oriented gradients: the encoder of the first minute, before any network has been trained.

Dalal and Triggs, CVPR 2005: unsigned orientations, each gradient divided linearly between its two nearest bins, cells
on a full grid, blocks of 2x2 cells normalised with L2-Hys. On faces the full grid matters: averaging over it loses
where the brows and the mouth are.

Deviations: no interpolation between neighbouring cells; gray is the mean of the channels weighted by ITU-R 601; images
of 96 pixels or more are first averaged down to a side of 48 to 95.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.components import largest

GRID = 8
ORIENTATIONS = 9
CLIP = 0.2
MAX_DIM = 256
MAX_FIT = 10_000
_BASE_SIDE = 48
_BATCH = 256
F32 = NDArray[np.float32]


def describe(images: NDArray[np.uint8]) -> F32:
    """Return the descriptors of RGB images (n, s, s, 3) uint8 as (n, 7 * 7 * 36); an all-black image gives zeros.

    Raises:
        ValueError: another type or shape, or a side below 16.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be uint8 (n, s, s, 3), got {images.dtype} {images.shape}")
    if images.shape[1] < 2 * GRID:
        raise ValueError(f"images of {images.shape[1]} pixels are too small; the least is {2 * GRID}")
    parts = [_describe(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, dim()), dtype=np.float32)


def dim() -> int:
    """Return the length of a descriptor."""
    return (GRID - 1) ** 2 * 4 * ORIENTATIONS


def _describe(images: NDArray[np.uint8]) -> F32:
    gray = _gray(images)
    dx = np.zeros_like(gray)
    dy = np.zeros_like(gray)
    dx[:, :, 1:-1] = gray[:, :, 2:] - gray[:, :, :-2]
    dy[:, 1:-1, :] = gray[:, 2:, :] - gray[:, :-2, :]
    strength = np.hypot(dx, dy)
    angle = np.arctan2(dy, dx)
    angle *= np.float32(ORIENTATIONS / np.pi)  # unsigned: one turn of the bins is half a turn of the gradient
    angle %= np.float32(ORIENTATIONS)
    cells = np.stack([_pool(strength * _share(angle, b)) for b in range(ORIENTATIONS)], axis=-1)
    return _blocks(cells)


def _gray(images: NDArray[np.uint8]) -> F32:
    gray = images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / np.float32(255)
    factor = gray.shape[1] // _BASE_SIDE
    if factor > 1:
        side = gray.shape[1] // factor
        gray = gray[:, : side * factor, : side * factor]
        gray = gray.reshape(len(gray), side, factor, side, factor).mean(axis=(2, 4))
    return np.asarray(gray, dtype=np.float32)


def _share(angle: F32, bin_: int) -> F32:
    """Return how much of each gradient falls into a bin: linear between bin centres, around the circle."""
    away = np.abs(angle - np.float32(bin_))
    away = np.minimum(away, np.float32(ORIENTATIONS) - away)
    return np.asarray(np.maximum(np.float32(1) - away, 0), dtype=np.float32)


def _pool(x: F32) -> F32:
    """Sum (n, s, s) over a grid of cells (n, GRID, GRID); the cells differ by one pixel where s is no multiple."""
    edges = np.arange(GRID) * x.shape[1] // GRID
    return np.asarray(np.add.reduceat(np.add.reduceat(x, edges, axis=1), edges, axis=2), dtype=np.float32)


def _blocks(cells: F32) -> F32:
    blocks = np.concatenate([cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]], axis=-1)
    blocks = _normalise(blocks)
    blocks = _normalise(np.minimum(blocks, np.float32(CLIP)))
    return np.asarray(blocks.reshape(len(blocks), -1), dtype=np.float32)


def _normalise(x: F32) -> F32:
    return np.asarray(x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + np.float32(1e-5)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Projection:
    """Principal components of descriptors: mean (D,), components (D, d), the common scale of the result."""

    mean: F32
    components: F32
    scale: float

    @property
    def dim(self) -> int:
        """The length d of a feature."""
        return int(self.components.shape[1])

    def __call__(self, descriptors: F32) -> NDArray[np.float16]:
        """Project descriptors (n, D) to features (n, d) of typical length one; an all-zero descriptor stays zero."""
        features = (descriptors - self.mean) @ self.components * np.float32(self.scale)
        features[~descriptors.any(axis=1)] = 0
        return features.astype(np.float16)

    def arrays(self) -> dict[str, F32]:
        """Return what `from_arrays` needs, for a file."""
        return {
            "mean": self.mean,
            "components": self.components,
            "scale": np.array([self.scale], dtype=np.float32),
        }

    @classmethod
    def from_arrays(cls, mean: F32, components: F32, scale: F32) -> "Projection":
        """Read back what `arrays` returned."""
        return cls(mean, components, float(scale[0]))


def fit(descriptors: F32, max_dim: int = MAX_DIM, seed: int = 0) -> Projection:
    """Fit the projection to at most `max_dim` components on at most `MAX_FIT` descriptors (n, D), n >= 2.

    The same descriptors give the same projection: the sample is drawn by `seed`, signs are fixed by the largest entry
    of each component.
    """
    sample = descriptors[descriptors.any(axis=1)]
    if len(sample) < 2:
        raise ValueError(f"{len(sample)} descriptors with anything in them; fitting needs at least 2")
    if len(sample) > MAX_FIT:
        chosen = np.random.default_rng(seed).choice(len(sample), MAX_FIT, replace=False)
        sample = sample[np.sort(chosen)]
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = sample - mean
    values, vectors = largest(centred, min(max_dim, len(sample) - 1, centred.shape[1]))
    components = np.ascontiguousarray(vectors[:, : max(1, int((values > 1e-9).sum()))], dtype=np.float32)
    length = float(np.sqrt(((centred @ components) ** 2).sum(axis=1).mean()))
    return Projection(mean, components, 1.0 / max(length, 1e-6))
