"""Views of faces for pre-training, which leave the expression what it is. Pure functions of (seed, step, row, view)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from learner import draws
from learner.draws import Rows
from learner.pretrain.config import ViewConfig
from learner.transfer import send

_PURPOSE = 61  # of draws; one more per view
_DRAWS = 12
_Draw = NDArray[np.float32]


class SafeViews:
    """Makes distorted views of faces, on the device of the faces."""

    def __init__(self, config: ViewConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, faces: Tensor, rows: Rows, step: int, view: int = 0) -> tuple[Tensor, Tensor]:
        """Distort faces float (B,C,s,s) in [0,1]: the views, about in [0,1], and which are mirrored (B,) bool."""
        draw = draws.uniform(self.seed, step, rows, _PURPOSE + view, _DRAWS)
        mirrored = draw[:, 0] < self.config.flip_probability
        x = self._move(faces, draw, mirrored)
        x = self._photograph(x, draw)
        return self._cut_out(x, draw), send(mirrored, faces.device)

    def _move(self, faces: Tensor, draw: _Draw, mirrored: NDArray[np.bool_]) -> Tensor:
        """Flip, then shift, scale and turn; bilinear, mirrored beyond the edges."""
        config = self.config
        low, high = config.scale
        size = 1 / (low + (high - low) * draw[:, 1])
        angle = (2 * draw[:, 2] - 1) * math.radians(config.rotation)
        shift = 2 * config.shift * (2 * draw[:, 3:5] - 1)
        flip = np.where(mirrored, -1, 1)
        across = np.stack([size * np.cos(angle) * flip, -size * np.sin(angle) * flip, shift[:, 0]], axis=1)
        down = np.stack([size * np.sin(angle), size * np.cos(angle), shift[:, 1]], axis=1)
        maps = send(np.stack([across, down], axis=1).astype(np.float32), faces.device)
        grid = F.affine_grid(maps, list(faces.shape), align_corners=False)
        return F.grid_sample(faces, grid, padding_mode="reflection", align_corners=False)

    def _photograph(self, x: Tensor, draw: _Draw) -> Tensor:
        """Change gamma, contrast, brightness and sharpness."""
        config = self.config

        def each(values: _Draw) -> Tensor:
            return send(values.astype(np.float32), x.device)[:, None, None, None]

        x = x.clamp(1e-4, 1).pow(each(np.exp(config.gamma * (2 * draw[:, 5] - 1))))
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        change = each(1 + config.contrast * (2 * draw[:, 6] - 1))
        x = (x - mean) * change + mean + each(config.contrast / 3 * (2 * draw[:, 7] - 1))
        strength = each(np.where(draw[:, 8] < config.blur, draw[:, 8] / max(config.blur, 1e-9), 0))
        soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return torch.lerp(x, soft, strength.expand_as(x))

    def _cut_out(self, x: Tensor, draw: _Draw) -> Tensor:
        """Cover one square by the face's mean."""
        size = x.shape[-1]
        half = draw[:, 9:10] * math.sqrt(self.config.cutout) * size / 2
        base = np.arange(size, dtype=np.float32)[None] + 0.5
        inside = [np.abs(base - size * draw[:, n : n + 1]) < half for n in (10, 11)]
        across, down = (send(part, x.device) for part in inside)
        covered = (down[:, :, None] & across[:, None, :])[:, None]
        return torch.where(covered, x.mean(dim=(1, 2, 3), keepdim=True), x)
