"""Frozen encoders for a feature bank: HOG, a network that we trained, or any backbone with weights from a file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from learner import hog, snapshot
from learner.augment import Augmenter
from learner.bank import F32, U8, Encoder
from learner.config import AugmentConfig, BackboneConfig
from learner.errors import InputError
from learner.models import FEATURES, make_backbone


class HogEncoder:
    """Histograms of oriented gradients, projected to the principal components of the pool's clean faces."""

    def __init__(self, max_dim: int = hog.MAX_DIM) -> None:
        self.max_dim = max_dim
        self._projection: hog.Projection | None = None

    @property
    def asked(self) -> str:
        """The name and the most components; the projection itself depends on the pool."""
        return f"hog:{self.max_dim}"

    def fit(self, faces: U8) -> None:
        """Fit the projection to faces (n,s,s,3).

        Raises:
            InputError: fewer than two faces that are not black, or smaller than 16 pixels.
        """
        try:
            self._projection = hog.fit(hog.describe(faces), self.max_dim)
        except ValueError as error:
            raise InputError(f"cannot fit the HOG encoder: {error}") from error

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the projection."""
        projection = self._fitted()
        return {"hog_mean": projection.mean, "hog_components": projection.components}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take back the projection."""
        self._projection = hog.Projection(arrays["hog_mean"], arrays["hog_components"], 1.0)

    def __call__(self, faces: U8) -> F32:
        """Describe and project faces (n,s,s,3) as (n,d)."""
        projection = self._fitted()
        return np.asarray((hog.describe(faces) - projection.mean) @ projection.components, dtype=np.float32)

    def _fitted(self) -> hog.Projection:
        if self._projection is None:
            raise InputError("the HOG encoder has not been fitted to a pool yet")
        return self._projection


class NetworkEncoder:
    """A backbone's pooled output, in eval mode: BatchNorm uses its running statistics and nothing is dropped."""

    def __init__(self, backbone: nn.Module, name: str, image_size: int, device: torch.device | str = "cpu") -> None:
        self.backbone = backbone.to(device).eval().requires_grad_(False)
        self.image_size = image_size
        self.device = torch.device(device)
        self._normaliser = Augmenter(AugmentConfig(), image_size, 0, self.device)
        self._asked = f"{name}:{weights_digest(backbone)}"

    @property
    def asked(self) -> str:
        """The backbone's name and a digest of its weights."""
        return self._asked

    def fit(self, faces: U8) -> None:
        """Do nothing: the network is trained already."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nothing: the weights are in their own file."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Do nothing."""

    @torch.inference_mode()
    def __call__(self, faces: U8) -> F32:
        """Run the backbone on faces (n,s,s,3); (n,d)."""
        x = self._normaliser.normalise(self._normaliser.upload(faces))
        features: F32 = self.backbone(x).float().cpu().numpy()
        return features


def weights_digest(network: nn.Module) -> str:
    """Return a short digest of every weight and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:12]


def make_encoder(name: str, image_size: int, weights: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """Make the encoder that `name` asks for: "hog", the folder of a run or snapshot, or a backbone with weights.

    Raises:
        InputError: no such encoder; a backbone without weights; a snapshot of another image size.
        CheckpointError: the weights cannot be loaded.
    """
    if name == "hog":
        if weights is not None:
            raise InputError("the HOG encoder takes no weights")
        return HogEncoder()
    for folder in (Path(name) / "out", Path(name)):
        if (folder / "state.json").is_file():
            model = snapshot.load(folder)
            if model.config.image_size != image_size:
                raise InputError(f"{folder} reads {model.config.image_size} pixels, these faces have {image_size}")
            if model.config.backbone.name == FEATURES:
                raise InputError(f"{folder} was trained on a feature bank itself and sees no pixels")
            return NetworkEncoder(model.network.backbone, model.config.backbone.name, image_size, device)
    if weights is None:
        raise InputError(f"encoder {name!r} is neither hog nor a trained model; a backbone needs --weights")
    torch.manual_seed(0)
    backbone, _ = make_backbone(BackboneConfig(name=name, weights=weights), image_size)
    return NetworkEncoder(backbone, name, image_size, device)
