"""What an encoder learns from faces alone: contrast of views; descriptors or pixels predicted from a distorted view.

SimCLR: Chen et al. 2020; VICReg: Bardes et al. 2022; MaskFeat: Wei et al. 2022. Heads and projector read the same 3×3
grid of the last map that the encoder is read out from.

Deviations: one network carries any weighted sum of them; the term `hog` predicts the descriptor of the whole face
before it was distorted, so that features forget shift, scale, turn and light but keep where the edges of a face are.
"""

from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learner import draws
from learner.augment import MEAN, STD
from learner.backbones import LUMINANCE, FaceNet, read_grid
from learner.draws import Rows
from learner.losses import nt_xent
from learner.pretrain.config import PretrainConfig
from learner.pretrain.targets import HogTargets
from learner.pretrain.views import SafeViews
from learner.transfer import send

CELL = 8  # masks are drawn on a grid of CELL×CELL cells
HOG_CELLS, ORIENTATIONS = 12, 9
_MASK = 71  # purpose of draws; one more per view
_PROJECTOR = 1024
_VICREG_DIM, _SIMCLR_DIM = 512, 128


class Objective(Protocol):
    """What a pre-training run optimises."""

    @property
    def network(self) -> nn.Module:
        """Everything that is trained."""
        ...

    def loss(self, faces: Tensor, rows: Rows, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss of faces uint8 (B,3,s,s), and its parts by name."""
        ...

    def encoder(self, network: nn.Module) -> nn.Module:
        """Return the part of (a copy of) `network` that is kept: normalised images (B,3,s,s) to a map (B,C,h,w)."""
        ...


class PretrainNetwork(nn.Module):
    """A network up to its last map, and the heads that training needs and the encoder drops."""

    def __init__(self, body: nn.Module, channels: int, config: PretrainConfig, target_dim: int | None) -> None:
        super().__init__()
        assert config.terms is not None
        self.body, self.grid = body, config.grid
        weights, wide = config.terms.weights, channels * config.grid**2
        heads: dict[str, nn.Module] = {}
        if "hog" in weights and target_dim is not None:
            heads["hog"] = nn.Linear(wide, target_dim)
        if "simclr" in weights:
            heads["simclr"] = _projector(wide, _SIMCLR_DIM)
        if "vicreg" in weights:
            heads["vicreg"] = _projector(wide, _VICREG_DIM)
        if "maskfeat" in weights:
            heads["maskfeat"] = nn.Linear(wide, ORIENTATIONS * HOG_CELLS**2)
        if "pixels" in weights:
            heads["pixels"] = nn.Linear(wide, config.image_size**2)
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B,3,s,s) to the grid of the last map (B,d)."""
        return read_grid(self.body(x), self.grid)


def _projector(wide: int, dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(wide, _PROJECTOR, bias=False), nn.BatchNorm1d(_PROJECTOR), nn.ReLU(), nn.Linear(_PROJECTOR, dim)
    )


class FaceTerms:
    """The weighted sum of a `TermsConfig`. Views and masks depend on (seed, step, row)."""

    def __init__(
        self, body: nn.Module, channels: int, config: PretrainConfig, targets: HogTargets | None, device: torch.device
    ) -> None:
        assert config.terms is not None
        self.config, self.terms, self.targets = config, config.terms, targets
        self.network: nn.Module = PretrainNetwork(body, channels, config, targets.dim if targets else None).to(device)
        self._views = SafeViews(config.views, config.seed)
        self._gray = isinstance(body, FaceNet)  # it looks at the luminance alone: views of one channel are enough
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
        self._luminance = torch.tensor(LUMINANCE, device=device).view(1, 3, 1, 1)

    def encoder(self, network: nn.Module) -> nn.Module:
        """Return the body."""
        return cast(PretrainNetwork, network).body

    def loss(self, faces: Tensor, rows: Rows, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum over the terms, and each by name."""
        weights = self.terms.weights
        image = faces.float() / 255
        if self._gray:
            image = (image * self._luminance).sum(dim=1, keepdim=True)
        pairs = bool({"simclr", "vicreg"} & set(weights))
        made = [self._views(image, rows, step, view) for view in range(2 if pairs else 1)]
        views = torch.cat([view for view, _ in made])
        found: dict[str, Tensor] = {}
        if pairs or "hog" in weights:
            seen = views
            if self.terms.hog_masked:
                seen = self._hide(views, self._masks(rows, step, len(made), vary=True))
            found |= self._whole_face(self.network(self._normalise(seen)), rows, [m for _, m in made])
        if {"maskfeat", "pixels"} & set(weights):
            mask = self._masks(rows, step, 1, vary=False)
            view = views[: len(rows)]
            found |= self._masked(self.network(self._normalise(self._hide(view, mask))), view, mask)
        total = torch.stack([weights[name] * value for name, value in found.items()]).sum()  # type: ignore[index]
        return total, {name: value.detach() for name, value in found.items()}

    def _whole_face(self, grid: Tensor, rows: Rows, mirrored: list[Tensor]) -> dict[str, Tensor]:
        """Return the terms that read whole views (V*B,d)."""
        heads, found = cast(PretrainNetwork, self.network).heads, {}
        if "hog" in heads:
            assert self.targets is not None
            wanted = torch.cat([self.targets(rows, flags) for flags in mirrored])
            found["hog"] = F.mse_loss(heads["hog"](grid).float(), wanted)
        if "simclr" in heads:
            one, other = heads["simclr"](grid).float().chunk(2)
            found["simclr"] = nt_xent(one, other, self.terms.temperature)
        if "vicreg" in heads:
            found["vicreg"] = vicreg(*heads["vicreg"](grid).float().chunk(2))
        return found

    def _masked(self, grid: Tensor, view: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the terms that fill in what mask (B,1,CELL,CELL) hides of the views (B,C,s,s)."""
        heads, found = cast(PretrainNetwork, self.network).heads, {}
        gray = view.mean(dim=1, keepdim=True)
        if "maskfeat" in heads:
            wanted = hog_cells(gray)
            cells = heads["maskfeat"](grid).float().view(wanted.shape)
            found["maskfeat"] = _where_masked((cells - wanted).square(), mask)
        if "pixels" in heads:
            wanted = _normalise_cells(gray)
            pixels = heads["pixels"](grid).float().view(wanted.shape)
            found["pixels"] = _where_masked((pixels - wanted).square(), mask)
        return found

    def _normalise(self, x: Tensor) -> Tensor:
        x = (x - self._mean) / self._std
        return x.contiguous(memory_format=torch.channels_last)

    def _masks(self, rows: Rows, step: int, views: int, vary: bool) -> Tensor:
        """Draw which cells are hidden, (V*B,1,CELL,CELL): a fixed share, or one drawn per face from 0 up to it."""
        parts = []
        for view in range(views):
            draw = draws.uniform(self.config.seed, step, rows, _MASK + view, CELL * CELL + 1)
            share = self.terms.mask * (draw[:, -1:] if vary else 1)
            rank = draw[:, :-1].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            parts.append((rank < share * CELL * CELL).astype(np.float32))
        return send(np.concatenate(parts), self._mean.device).view(-1, 1, CELL, CELL)

    @staticmethod
    def _hide(x: Tensor, mask: Tensor) -> Tensor:
        """Cover masked cells by the face's mean."""
        return torch.where(_spread(mask, x.shape[-1]) > 0, x.mean(dim=(1, 2, 3), keepdim=True), x)


def vicreg(a: Tensor, b: Tensor, invariance: float = 25, variance: float = 25, covariance: float = 1) -> Tensor:
    """Return VICReg of embeddings a, b (B,d): 25 s + 25 v + 1 c, v averaged and c summed over the two views.

    s is the mean squared distance, v the mean hinge of each dimension's standard deviation below 1, c the squared
    off-diagonal covariances over d.
    """

    def spread(z: Tensor) -> tuple[Tensor, Tensor]:
        centred = z - z.mean(dim=0)
        cov = centred.T @ centred / (len(z) - 1)
        off = cov.square().sum() - cov.diagonal().square().sum()
        return F.relu(1 - (cov.diagonal() + 1e-4).sqrt()).mean(), off / z.shape[1]

    (va, ca), (vb, cb) = spread(a), spread(b)
    return invariance * F.mse_loss(a, b) + variance * (va + vb) / 2 + covariance * (ca + cb)


def hog_cells(gray: Tensor, cells: int = HOG_CELLS) -> Tensor:
    """Return oriented gradients (B,9,n,n) of faces (B,1,s,s) per cell, divided by the energy of the 3×3 cells around.

    Unsigned, divided linearly between the two nearest of nine orientations (as `learner.hog`).
    """
    dx = F.pad(gray[..., 2:] - gray[..., :-2], (1, 1))
    dy = F.pad(gray[..., 2:, :] - gray[..., :-2, :], (0, 0, 1, 1))
    turn = torch.remainder(torch.atan2(dy, dx) * (ORIENTATIONS / np.pi), ORIENTATIONS)
    away = (turn - torch.arange(ORIENTATIONS, device=gray.device).view(1, -1, 1, 1)).abs()
    away = torch.minimum(away, ORIENTATIONS - away)
    histogram = F.adaptive_avg_pool2d(torch.hypot(dx, dy) * (1 - away).clamp(min=0), cells)
    energy = F.pad(histogram.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return histogram / (9 * F.avg_pool2d(energy, 3, 1) + 1e-3).sqrt()


def _normalise_cells(gray: Tensor) -> Tensor:
    """Bring every cell of faces (B,1,s,s) to mean 0 and variance 1 (ALGORITHMS.md 8.1 b)."""
    size = gray.shape[-1]
    side = size // CELL
    cells = F.unfold(gray[..., : side * CELL, : side * CELL], side, stride=side)
    variance, mean = torch.var_mean(cells, dim=1, keepdim=True, correction=1)
    normal = F.fold((cells - mean) / (variance + 1e-4).sqrt(), side * CELL, side, stride=side)
    return F.pad(normal, (0, size - side * CELL, 0, size - side * CELL))


def _where_masked(errors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of errors (B,C,h,w) where the mask (B,1,CELL,CELL) hides."""
    where = _spread(mask, errors.shape[-1]).expand_as(errors)
    return (errors * where).sum() / where.sum().clamp(min=1)


def _spread(mask: Tensor, size: int) -> Tensor:
    return F.interpolate(mask, size=(size, size), mode="nearest")
