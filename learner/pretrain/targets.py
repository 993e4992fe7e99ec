"""HOG descriptors of the undistorted faces, whitened, as targets of pre-training: computed once, kept by row."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import hog
from learner.data import PixelCache
from learner.draws import Rows
from learner.errors import InputError
from learner.transfer import send

FILE = "targets.npy"
_CHUNK = 1024
_RIDGE = 1e-6  # of the largest variance: directions without any are not blown up


class HogTargets:
    """Descriptors by row, of a face and of its mirror image: float16 (n,2,d) beside the ascending rows (n,)."""

    def __init__(self, folder: Path) -> None:
        """Open what `build` wrote."""
        self._rows = np.load(folder / "targets-rows.npy", allow_pickle=False)
        self._targets = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)

    @property
    def dim(self) -> int:
        """The length d of a target."""
        return int(self._targets.shape[2])

    def __call__(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Return the targets (B,d) float32 of rows (B,), of the mirror image where mirrored (B,) bool."""
        both = send(np.asarray(self._targets[np.searchsorted(self._rows, rows)]), mirrored.device)
        return torch.where(mirrored[:, None], both[:, 1], both[:, 0]).float()


def build(
    cache: PixelCache, rows: Rows, folder: Path, dim: int, whitening: float, on_done: Callable[[float], None]
) -> None:
    """Describe the faces of ascending `rows` and project them; a finished file is left as it is.

    Each of the `dim` principal components is divided by its standard deviation to the power `whitening`; then all are
    scaled to a mean square of 1.

    Raises:
        InputError: fewer than two faces that are not black.
    """
    if (folder / FILE).exists():
        return
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), hog.MAX_FIT)).astype(np.int64)]
    try:
        projection = hog.fit(_describe(cache, sample), dim)
    except ValueError as error:
        raise InputError(f"nothing to learn from: {error}") from error
    components = _whiten(projection, _describe(cache, sample[:: max(1, len(sample) // 2000)]), whitening)
    temporary = folder / f".{FILE}.{os.getpid()}"
    shape = (len(rows), 2, components.shape[1])
    targets = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
    for start in range(0, len(rows), _CHUNK):
        faces = cache.gather(rows[start : start + _CHUNK])
        for side, images in enumerate((faces, faces[:, :, ::-1])):
            targets[start : start + _CHUNK, side] = (hog.describe(images) - projection.mean) @ components
        on_done(min(1.0, (start + _CHUNK) / len(rows)))
    targets.flush()
    np.save(folder / "targets-rows.npy", rows)
    temporary.replace(folder / FILE)


def _describe(cache: PixelCache, rows: Rows) -> NDArray[np.float32]:
    parts = [hog.describe(cache.gather(rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK)]
    return np.concatenate(parts)


def _whiten(projection: hog.Projection, sample: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    scores = (sample - projection.mean) @ projection.components
    variance = scores.var(axis=0) + 1e-12
    variance += _RIDGE * variance.max()
    scale = variance ** (-power / 2)
    scale /= np.sqrt((scores * scale).var(axis=0).mean())
    return np.asarray(projection.components * scale, dtype=np.float32)
