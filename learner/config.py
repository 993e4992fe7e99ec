"""Everything that decides a training run, in one frozen object: unknown keys fail, nothing is inherited.

A configuration file is one YAML (or JSON) document with exactly the fields of `RunConfig`; what it leaves out takes the
defaults below, and `RunConfig.save` writes the resolved whole beside the results.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from learner.errors import InputError

Operation = Literal[
    "AutoContrast",
    "Equalize",
    "Identity",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Rotate",
    "ShearX",
    "ShearY",
    "Solarize",
    "TranslateX",
    "TranslateY",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
SHIPPED = "shipped"
SHIPPED_FILE = Path(__file__).parent / "pretrain" / "shipped" / "encoder.safetensors"


class Part(BaseModel):
    """A section of a configuration: frozen, unknown keys fail."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Part):
    """Which network sees the face, and where its first weights come from."""

    name: str = Field("resnet18", description="a timm model, resnet10_grid or resnet10_small")
    weights: str | None = Field(
        None, description="path of a safetensors or weights_only file, 'shipped', 'timm', or null for none"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="what the timm model takes beyond its name: patch_size, embed_dim, depth, num_heads of a ViT, …",
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="the papers' 0.5 learns slower in short rounds from a random start"
    )


class AugmentConfig(Part):
    """Weak and strong views (ALGORITHMS.md 1.4)."""

    crop_probability: float = Field(0.5, ge=0, le=1)
    crop_padding: float = Field(
        8 / 224, ge=0, le=0.5, description="zero padding before the crop, as a share of the side"
    )
    crop_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest area of a random resized crop, which then takes the place of the padded one; 1 for none",
    )
    flip_probability: float = Field(0.5, ge=0, le=1)
    operations: tuple[Operation, ...] = Field(OPERATIONS, description="what the strong view draws from")
    num_operations: int = Field(3, ge=0, le=8)
    cutout: float = Field(0.5, ge=0, le=1, description="largest side of the cut-out as a share of the side; 0 for none")

    @field_validator("operations")
    @classmethod
    def _some(cls, value: tuple[Operation, ...]) -> tuple[Operation, ...]:
        if not value:
            raise ValueError("name at least one operation (Identity does nothing)")
        return value


class OptimizerConfig(Part):
    """The optimiser; its moments start anew every round."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="the papers' 5e-4 suits pre-trained weights")
    weight_decay: float = Field(0.02, ge=0, description="decoupled for adamw; never touches buffers")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only (Nesterov)")
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="linear rise of the rate over the first steps of the run")


class EmaConfig(Part):
    """The averaged model that is evaluated and published (ALGORITHMS.md 1.3)."""

    decay: float = Field(0.999, ge=0, lt=1)
    warmup: bool = Field(
        True, description="min(decay, (1+t)/(10+t)) at lifetime step t, so that short runs are not all start"
    )


class FileConfig(Part):
    """A run's settings, read from one YAML or JSON file and written beside its results."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read one YAML or JSON file.

        Raises:
            InputError: the file is missing or holds an unknown key or a wrong value.
        """
        return cls.parse(read_yaml(Path(path), "configuration"), str(path))

    @classmethod
    def parse(cls, data: dict[str, Any], source: str = "configuration") -> Self:
        """Validate a mapping, turning pydantic's report into one line.

        Raises:
            InputError: an unknown key or a wrong value; the message names each.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            parts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given {e['input']!r})" for e in error.errors())
            raise InputError(f"{source}: " + "; ".join(parts)) from error

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with other values; `backbone` etc. may be given as mappings."""
        return self.parse({**self.model_dump(), **changes})

    def save(self, path: str | Path) -> None:
        """Write the resolved configuration as JSON, replacing the file atomically."""
        write_json(Path(path), self.model_dump(mode="json"))


class RunConfig(FileConfig):
    """One training run, completely."""

    method: str = "lion"
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    seed: int = Field(0, ge=0)
    steps: int = Field(300, ge=1)
    image_size: int = Field(48, ge=16, le=1024)
    labeled_batch: int = Field(32, ge=1)
    unlabeled_batch: int = Field(32, ge=1)
    class_balanced: bool = Field(False, description="draw labeled faces with equal weight per class instead of in turn")
    method_epoch_len: int = Field(800, ge=1, description="steps that a paper's epoch stands for")
    ramp_scope: Literal["run", "lifetime"] = "lifetime"
    backbone: BackboneConfig = BackboneConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "32-true", description="auto: bf16-mixed where the device computes bfloat16 by itself"
    )
    compile: bool = Field(
        False, description="torch.compile of the trained network: minutes once, for long runs on a GPU"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null leaves torch's choice")
    log_every: int = Field(20, ge=1, description="steps between two readings of losses from the device")
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints")
    predict_batch: int | None = Field(None, ge=1, description="null: 64 on a CPU (fits its cache), 512 elsewhere")
    predict_views: Literal["none", "strong", "weak+strong"] = Field(
        "strong",
        description="readings beside the clean one, for the disagreement signals; 'strong' compares with the clean",
    )


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; `what` it is called in messages.

    Raises:
        InputError: it is missing, no YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no mapping of settings")
    return data


def write_json(path: Path, data: Any) -> None:
    """Replace a small JSON file atomically, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
