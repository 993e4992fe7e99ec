"""The network: a timm backbone by name, feature adapters, a linear head; its averaged copy; and weights from a file."""

import copy
import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from learner import backbones  # registers its networks with timm
from learner.config import SHIPPED, SHIPPED_FILE, BackboneConfig, EmaConfig
from learner.errors import CheckpointError, InputError
from learner.parts import NetOut, Recipe

HEAD_PREFIXES = ("fc.", "head.", "classifier.", "head_drop.", "module.fc.", "decoder", "mask_token", "projection.")
FEATURES = "features"
WRAPPERS = ("module.", "model.", "backbone.", "encoder.", "base.", "body.")


class Network(nn.Module):
    """Backbone, dropout, feature adapters, optional unit length; head adapters, scale, linear head, logit adapters.

    The recipe's parts come last: they read the adapted features and write into `aux`.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, recipe: Recipe, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.dropout = dropout
        self.feature_norm = recipe.feature_norm
        self.scale = recipe.feature_scale if recipe.feature_norm == "l2" else 1.0
        self.feature_adapters = nn.ModuleList(recipe.feature_adapters)
        self.head_adapters = nn.ModuleList(recipe.head_adapters)
        self.head = nn.Linear(feature_dim, num_classes)
        self.logit_adapters = nn.ModuleList(recipe.logit_adapters)
        self.parts = nn.ModuleDict(dict(recipe.parts))
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Map images (B,3,H,W) to pooled features (B,d), adapted features (B,d), logits (B,K) and auxiliary outputs."""
        aux: dict[str, Tensor] = {}
        f_raw = self.backbone(x)
        f = F.dropout(f_raw, self.dropout, self.training)
        for adapter in self.feature_adapters:
            f = adapter(f, aux)
        f = f.float()
        if self.feature_norm == "l2":
            f = F.normalize(f, dim=1)
        seen = f
        for adapter in self.head_adapters:
            seen = adapter(seen, aux)
        z = self.head(seen * self.scale)
        for adapter in self.logit_adapters:
            z = adapter(z, f, aux)
        for part in self.parts.values():
            part(f, aux)
        return f_raw, f, z, aux

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """Tell which axes of which entries of the state dict run over the classes."""
        axes: dict[str, tuple[int, ...]] = {"head.weight": (0,), "head.bias": (0,)}
        for name, module in self.named_modules():
            own: dict[str, tuple[int, ...]] = getattr(module, "class_axes", {}) if module is not self else {}
            axes |= {f"{name}.{key}": where for key, where in own.items()}
        return axes


def run(network: nn.Module, x: Tensor) -> NetOut:
    """Call a network and name what it returns; float32 whatever the precision it ran in."""
    f_raw, f, z, aux = network(x)
    return NetOut(f_raw.float(), f.float(), z.float(), aux)


def make_backbone(config: BackboneConfig, image_size: int, feature_dim: int | None = None) -> tuple[nn.Module, int]:
    """Make the named timm backbone with pooled output and its first weights; return it and its feature width.

    "features" stands for a bank of features of width `feature_dim`: nothing is left for a backbone to do.

    Raises:
        InputError: no such backbone, one that does not take its arguments, or features and pixels are mixed up.
        CheckpointError: the weight file is missing, refused or does not fit, or the hub cannot be reached.
    """
    if (config.name == FEATURES) != (feature_dim is not None):
        raise InputError(
            f"backbone {config.name!r} does not fit this run: {FEATURES!r} reads a feature bank, all others read pixels"
        )
    if feature_dim is not None:
        return nn.Identity(), feature_dim
    if not timm.is_model(config.name):
        near = ", ".join(difflib.get_close_matches(config.name, timm.list_models(), 4))
        raise InputError(
            f"no backbone {config.name!r} in timm {timm.__version__}" + (f"; near: {near}" if near else "")
        )
    taken = sorted(config.arguments.keys() & {"img_size", "num_classes", "pretrained", "checkpoint_path"})
    if taken:
        raise InputError(f"backbone.arguments: {taken[0]} follows from the other settings; remove it")
    extra: dict[str, Any] = dict(config.arguments)
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is not None and cfg.fixed_input_size:
        extra["img_size"] = image_size
    try:
        backbone: nn.Module = timm.create_model(
            config.name, pretrained=config.weights == "timm", num_classes=0, **extra
        )
    except (TypeError, ValueError, AssertionError) as error:
        if not config.arguments:
            raise
        raise InputError(f"backbone {config.name!r} cannot be made with {config.arguments}: {error}") from error
    except (OSError, RuntimeError) as error:
        if config.weights != "timm":
            raise
        raise CheckpointError(f"cannot get weights of {config.name} from timm's hub: {error}; give a file") from error
    if config.weights == SHIPPED:
        if config.name != backbones.SHIPPED_NET:
            raise InputError(f"the shipped weights fit {backbones.SHIPPED_NET} only, not {config.name}")
        load_backbone(backbone, SHIPPED_FILE)
    elif config.weights not in (None, "timm"):
        load_backbone(backbone, Path(str(config.weights)))
    return backbone, int(backbone.num_features)  # type: ignore[arg-type]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors from a safetensors file or a `weights_only` checkpoint; pickled code is refused.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled objects, which can run code; save it as safetensors or a plain state dict of tensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(name), Mapping):
            data = data[name]
    if not isinstance(data, Mapping) or not all(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors")
    return {str(k): v for k, v in data.items()}


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a backbone's weights from a file, whatever wrapper its keys carry; heads and decoders are left out.

    Positions and patches that a ViT learned at another size are resampled, as timm does.

    Raises:
        CheckpointError: keys or shapes do not fit; the message lists them.
    """
    wanted = backbone.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in read_weights(path).items():
        stripped = name
        while stripped not in wanted and stripped.startswith(WRAPPERS):
            stripped = stripped.split(".", 1)[1]
        given[stripped] = tensor
    given = {k: v for k, v in given.items() if k in wanted or not k.startswith(HEAD_PREFIXES)}
    if isinstance(backbone, VisionTransformer):
        try:
            given = checkpoint_filter_fn(given, backbone)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"positions or patches in {path} cannot be resampled: {error}") from error
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unknown = [k for k in given if k not in wanted]
    misshapen = [
        f"{k} {tuple(v.shape)} not {tuple(wanted[k].shape)}"
        for k, v in given.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    if missing or unknown or misshapen:
        problems = [
            f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
            for what, keys in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
            if keys
        ]
        raise CheckpointError(f"weights in {path} do not fit this backbone: {'; '.join(problems)}")
    backbone.load_state_dict(given, strict=False)


def build_network(config: BackboneConfig, num_classes: int, recipe: Recipe, made: tuple[nn.Module, int]) -> Network:
    """Join a backbone made by `make_backbone` with the recipe's adapters and a fresh head, channels last."""
    backbone, feature_dim = made
    network = Network(backbone, feature_dim, num_classes, recipe, config.dropout)
    return network.to(memory_format=torch.channels_last)


N = TypeVar("N", bound=nn.Module)


class Ema(Generic[N]):
    """Averaged copy of a network (ALGORITHMS.md 1.3): parameters and float buffers averaged, integer buffers copied.

    It is always in eval mode and receives no gradient. Modules that say `averaged = False` are copied.
    """

    def __init__(self, network: N, config: EmaConfig) -> None:
        self.config = config
        self.network: N = copy.deepcopy(network)
        self.network.eval().requires_grad_(False)
        copied = tuple(f"{n}." for n, m in network.named_modules() if n and not getattr(m, "averaged", True))
        state = self.network.state_dict()
        self._averaged = [k for k, v in state.items() if v.is_floating_point() and not k.startswith(copied)]
        self._copied = [k for k in state if k not in set(self._averaged)]

    def decay(self, lifetime_step: int) -> float:
        """Return the factor of the old average at a lifetime step."""
        if not self.config.warmup:
            return self.config.decay
        return min(self.config.decay, (1 + lifetime_step) / (10 + lifetime_step))

    @torch.no_grad()
    def update(self, network: nn.Module, lifetime_step: int) -> None:
        """Move the average towards the network by one step."""
        m = self.decay(lifetime_step)
        mine, theirs = self.network.state_dict(), network.state_dict()
        torch._foreach_lerp_([mine[k] for k in self._averaged], [theirs[k] for k in self._averaged], 1 - m)
        for name in self._copied:
            mine[name].copy_(theirs[name])

    @torch.no_grad()
    def copy(self, network: nn.Module, prefix: str) -> None:
        """Take over the entries under `prefix` as they are."""
        theirs = network.state_dict()
        for name, value in self.network.state_dict().items():
            if name.startswith(prefix):
                value.copy_(theirs[name])
