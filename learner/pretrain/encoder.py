"""The face encoder: a network read out on a 3×3 grid, averaged with its mirror image, centred, on principal components.

One safetensors file holds the weights (float16) and, in its header, which network they are of.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from learner.augment import Augmenter
from learner.backbones import GridReadout, read_grid
from learner.checkpoint import sync
from learner.components import largest
from learner.config import SHIPPED, SHIPPED_FILE, AugmentConfig, BackboneConfig
from learner.errors import CheckpointError, InputError
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
FORMAT = 1
MAX_FIT = 10_000
_BATCH = 64  # fits a CPU's cache


class FaceEncoder:
    """Features of faces: uint8 (n,s,s,3) of any size to float32 (n,dim); frozen, in eval mode.

    `about` describes network, read-out and origin; `id` is a digest of the file's weights.
    """

    def __init__(self, network: GridReadout, about: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.about, self.device = about, torch.device(device)
        self.image_size = int(about["image_size"])
        self.dim = network.num_features
        self.name = str(about["name"])
        self.id = f"{self.name}-{_digest(network)}"
        self._normaliser = Augmenter(AugmentConfig(), self.image_size, 0, self.device)

    @torch.inference_mode()
    def __call__(self, faces: U8) -> F32:
        """Encode faces, each averaged with its mirror image.

        Raises:
            InputError: they are no square RGB faces.
        """
        _check(faces)
        parts = [self._encode(faces[start : start + _BATCH]) for start in range(0, len(faces), _BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _encode(self, faces: U8) -> F32:
        x = self._normaliser.normalise(_resize(self._normaliser.upload(faces), self.image_size))
        both: Tensor = self.network(torch.cat([x, x.flip(3)]))
        features: F32 = both.float().view(2, len(x), -1).mean(dim=0).cpu().numpy()
        return features

    def save(self, path: Path) -> None:
        """Write the file, durably and in one step."""
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.network.state_dict().items()}
        flat = {name: value.cpu().contiguous() for name, value in weights.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(flat, temporary, metadata={"encoder": json.dumps({"format": FORMAT, **self.about})})
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)

    @classmethod
    def load(cls, source: str | Path, device: torch.device | str = "cpu") -> "FaceEncoder":
        """Read an encoder's file; "shipped" is the one that comes with the project.

        Raises:
            CheckpointError: the file is missing, damaged or no encoder.
        """
        path = SHIPPED_FILE if str(source) == SHIPPED else Path(source)
        if not path.is_file():
            raise CheckpointError(f"no encoder {path}; make one with: python -m learner pretrain")
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("encoder", "{}")
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(header)
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} is no encoder ({error})") from error
        if about.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no encoder of format {FORMAT}; give one that `pretrain` made")
        about.pop("format")
        network = empty_readout(BackboneConfig.model_validate(about["backbone"]), about)
        _load(network, weights, path)
        return cls(network, about, device)


def empty_readout(backbone: BackboneConfig, about: dict[str, Any]) -> GridReadout:
    """Make the network that an encoder's header describes, without its weights."""
    body, channels = make_body(backbone.model_copy(update={"weights": None}), int(about["image_size"]))
    return GridReadout(body, channels, int(about["dim"]), int(about["grid"]))


def fit_readout(
    body: nn.Module, config: PretrainConfig, sample: U8, name: str, device: torch.device | str = "cpu"
) -> FaceEncoder:
    """Read a network's map (images (B,3,s,s) to (B,C,h,w)) out on the grid, on the principal components of `sample`.

    sample: faces uint8 (n,s,s,3), n >= 2; all-black ones do not count. Features have a mean square of 1.

    Raises:
        InputError: fewer than two faces that are not black.
    """
    sample = sample[sample.reshape(len(sample), -1).any(axis=1)][:MAX_FIT]
    if len(sample) < 2:
        raise InputError(f"{len(sample)} faces to fit the read-out to; two are needed")
    body = body.to(device).eval()
    normaliser = Augmenter(AugmentConfig(), config.image_size, 0, torch.device(device))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(sample), _BATCH):
            faces = _resize(normaliser.upload(sample[start : start + _BATCH]), config.image_size)
            x = normaliser.normalise(faces)
            grid = read_grid(body(torch.cat([x, x.flip(3)])).float(), config.grid)
            parts.append(grid.view(2, len(x), -1).mean(dim=0).cpu())
    wide = torch.cat(parts)
    channels = wide.shape[1] // config.grid**2
    weight, bias = principal_components(wide.double(), min(config.dim, len(sample) - 1, wide.shape[1]))
    network = GridReadout(body, channels, len(weight), config.grid)
    with torch.no_grad():
        network.projection.weight.copy_(weight)
        network.projection.bias.copy_(bias)
    backbone = config.backbone.model_dump(mode="json", exclude={"weights", "dropout"})
    about = {"name": name, "backbone": backbone, "image_size": config.image_size}
    return FaceEncoder(network, {**about, "grid": config.grid, "dim": len(weight)}, device)


def principal_components(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return weight (dim,D) and bias (dim,) that centre x (n,D), project it and bring its mean square to 1.

    Components keep their own variances, unlike whitened ones: on FER+ that reads expression best.
    """
    mean = x.mean(dim=0)
    values, components = largest((x - mean).numpy(), dim)
    weight = torch.from_numpy(components).T / np.sqrt(max(float(values.mean()), 1e-12))
    return weight.float(), -(weight @ mean).float()


def _check(faces: U8) -> None:
    if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[3] != 3 or faces.shape[1] != faces.shape[2]:
        raise InputError(f"faces must be uint8 (n, s, s, 3), got {faces.dtype} {faces.shape}")


def _resize(faces: Tensor, size: int) -> Tensor:
    """Bring faces uint8 (B,3,s,s) to another size, without aliasing."""
    if faces.shape[-1] == size:
        return faces
    return F.interpolate(faces.contiguous(), (size, size), mode="bilinear", antialias=True)


def _load(network: GridReadout, weights: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the network it names: {error}") from error


def _digest(network: nn.Module) -> str:
    """Return a short digest of the weights as the file keeps them."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        kept = value.half() if value.is_floating_point() else value
        digest.update(name.encode() + np.ascontiguousarray(kept.cpu().numpy()).tobytes())
    return digest.hexdigest()[:12]
