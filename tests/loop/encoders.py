"""Encoders of random weights, in files as pre-training makes them."""

from pathlib import Path

import torch

from learner.backbones import GridReadout
from learner.config import BackboneConfig
from learner.pretrain.bodies import make_body
from learner.pretrain.encoder import FaceEncoder

SIZE = 32


def write_encoder(path: Path, seed: int, dim: int = 256) -> FaceEncoder:
    """Write an encoder of the shipped one's form and return it as it is read back."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(name="resnet10_grid", dropout=0.0)
    body, channels = make_body(backbone, SIZE)
    kept = backbone.model_dump(mode="json", exclude={"weights", "dropout"})
    about = {"name": f"test{seed}", "backbone": kept, "image_size": SIZE, "grid": 3, "dim": dim}
    FaceEncoder(GridReadout(body, channels, dim), about).save(path)
    return FaceEncoder.load(path)
