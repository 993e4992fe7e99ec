"""Small networks for faces on a CPU, registered with timm, and the read-out that keeps where on the face things are."""

from typing import Any, cast

import torch
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from learner.augment import MEAN, STD
from learner.errors import InputError

SHIPPED_NET = "resnet10_grid"
LUMINANCE = (0.299, 0.587, 0.114)
GRID = 3
GRID_DIM = 256
_FLAT = 1e-4  # variance below which a face counts as blank


class FaceNet(nn.Module):
    """A residual net on small gray faces: normalised images (B,3,s,s) to a map (B,C,s/16,s/16).

    The picture is turned to luminance and brought to mean 0 and variance 1 first: colour and exposure say nothing of an
    expression, and the faces it was trained on are gray.
    """

    def __init__(self, channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        weight = torch.tensor(LUMINANCE) * torch.tensor(STD)
        self.luminance: Tensor
        self.register_buffer("luminance", weight.view(1, 3, 1, 1), persistent=False)
        self.offset = sum(w * m for w, m in zip(LUMINANCE, MEAN, strict=True))
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, 2, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)
        )
        layers: list[nn.Module] = []
        width = channels[0]
        for stage, (out, count) in enumerate(zip(channels, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage and not index else 1
                skip = None
                if stride != 1 or width != out:
                    skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                layers.append(BasicBlock(width, out, stride, skip))
                width = out
        self.body = nn.Sequential(*layers)
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the last map."""
        gray = (x * self.luminance).sum(dim=1, keepdim=True) + self.offset
        variance, mean = torch.var_mean(gray, dim=(1, 2, 3), keepdim=True, correction=0)
        gray = (gray - mean) / (variance + _FLAT).sqrt()
        return cast(Tensor, self.body(self.stem(gray)))


class GridReadout(nn.Module):
    """A network's last map averaged over a 3×3 grid of the face and projected: images (B,3,s,s) to features (B,d).

    Averaging over the whole face would lose whether it is the brows or the mouth that move. `body` maps images to a map
    (B,C,h,w) with h, w >= 3. The projection starts random; an encoder's holds principal components.
    """

    def __init__(self, body: nn.Module, channels: int, dim: int = GRID_DIM, grid: int = GRID) -> None:
        super().__init__()
        self.body, self.grid, self.num_features = body, grid, dim
        self.projection = nn.Linear(channels * grid * grid, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B,d)."""
        return cast(Tensor, self.projection(read_grid(self.body(x), self.grid)))


def read_grid(x: Tensor, grid: int = GRID) -> Tensor:
    """Average a map (B,C,h,w) over a grid and lay it out as (B, C*grid*grid); grid 1 is global average pooling."""
    if x.shape[2:] != (grid, grid):
        x = F.adaptive_avg_pool2d(x, grid)
    return x.flatten(1)


def _no_weights(name: str, pretrained: bool) -> None:
    if pretrained:
        raise InputError(f"{name} has no weights on timm's hub; give a file, 'shipped' for resnet10_grid, or none")


@register_model
def resnet10_grid(pretrained: bool = False, **kwargs: Any) -> GridReadout:
    """Build the shipped encoder's network: a ten-layer residual net with a 3×3 grid read-out of 256 features."""
    _no_weights("resnet10_grid", pretrained)
    return GridReadout(FaceNet(channels=(32, 64, 128, 256), blocks=(1, 1, 1, 1)), 256)


@register_model
def resnet10_small(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Build a four-block ResNet for small faces on a CPU: 3×3 stem of stride 2, no max-pool, 1.2 M weights."""
    _no_weights("resnet10_small", pretrained)
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)
    block: Any = BasicBlock
    model: Any = ResNet(block, (1, 1, 1, 1), channels=(32, 64, 128, 256), stem_width=16, stem_type="deep", **kwargs)
    model.conv1 = nn.Conv2d(kwargs.get("in_chans", 3), 32, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return cast(ResNet, model)
