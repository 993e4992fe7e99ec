"""Networks up to their last map, with their place on the face still in it."""

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from learner.backbones import GridReadout
from learner.config import BackboneConfig
from learner.errors import InputError
from learner.models import make_backbone
from learner.pretrain.mae import PatchMap


class LastMap(nn.Module):
    """A convolutional timm model without its pooling: normalised images (B,3,s,s) to a map (B,C,h,w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the last map."""
        found: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        return found


def make_body(config: BackboneConfig, image_size: int) -> tuple[nn.Module, int]:
    """Make the named network, with its first weights, up to its last map (B,C,h,w); return it and C.

    Raises:
        InputError: no such network, or one without a map of channels first.
        CheckpointError: its weights cannot be loaded.
    """
    model, _ = make_backbone(config, image_size)
    if isinstance(model, GridReadout):
        return model.body, cast(int, model.body.num_features)
    if isinstance(model, VisionTransformer):
        return PatchMap(model), int(model.embed_dim)
    if not hasattr(model, "forward_features"):
        raise InputError(f"{config.name} has no map to read out; choose a ResNet, ConvNeXt or plain ViT of timm")
    body, wide = LastMap(model), int(model.num_features)  # type: ignore[arg-type]
    with torch.no_grad():
        found = body.eval()(torch.zeros(1, 3, image_size, image_size))
    if found.dim() != 4 or found.shape[1] != wide:
        raise InputError(f"{config.name} ends in {tuple(found.shape)}, not in a map of {wide} channels; choose another")
    return body, wide
