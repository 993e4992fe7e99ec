"""What decides the pre-training of an encoder, in one frozen object: unknown keys fail, nothing is inherited."""

from typing import Literal

from pydantic import Field, model_validator

from learner.backbones import GRID, GRID_DIM
from learner.config import BackboneConfig, FileConfig, Part
from learner.pretrain.mae import MaeConfig

Term = Literal["hog", "simclr", "vicreg", "maskfeat", "pixels"]


class ViewConfig(Part):
    """Views that leave an expression what it is: no hard crop, no large shear, no mouth or eyes erased, no solarise."""

    flip_probability: float = Field(0.5, ge=0, le=1)
    shift: float = Field(0.1, ge=0, le=0.5, description="largest shift, as a share of the side")
    scale: tuple[float, float] = Field((0.8, 1.1), description="least and largest magnification")
    rotation: float = Field(15.0, ge=0, le=90, description="largest turn in degrees, either way")
    gamma: float = Field(0.5, ge=0, le=2, description="largest |log gamma|")
    contrast: float = Field(0.4, ge=0, lt=1, description="contrast and brightness change by at most this share")
    blur: float = Field(0.5, ge=0, le=1, description="probability of a 3×3 blur of random strength")
    cutout: float = Field(0.12, ge=0, le=1, description="largest area cut out, as a share of the face's")


class TermsConfig(Part):
    """What one network learns from faces alone: weights of the objectives, and their numbers.

    hog: predict the whole undistorted face's HOG descriptor from one view (MaskFeat's target, not per cell but whole).
    maskfeat: predict contrast-normalised HOG cells where the input is masked. pixels: the same with pixels (SSFER's
    objective on a convolutional net). simclr, vicreg: two views of a face agree.
    """

    weights: dict[Term, float] = Field({"hog": 1.0}, min_length=1)
    temperature: float = Field(0.2, gt=0, description="simclr")
    target_dim: int = Field(256, ge=2, description="hog: principal components to predict")
    whitening: float = Field(0.0, ge=0, le=1, description="hog: 0 keeps the components' variances, 1 makes them equal")
    mask: float = Field(
        0.5, ge=0, lt=1, description="maskfeat, pixels: share of cells masked; hog: the most, drawn from 0 up"
    )
    hog_masked: bool = Field(False, description="hog: mask cells of the view as well")

    @model_validator(mode="after")
    def _positive(self) -> "TermsConfig":
        wrong = {name: weight for name, weight in self.weights.items() if weight <= 0}
        if wrong:
            raise ValueError(f"weights must be above 0, got {wrong}; leave a term out instead")
        return self


class PretrainConfig(FileConfig):
    """One pre-training run, completely. `mae` replaces `terms`: a masked autoencoder on a ViT."""

    terms: TermsConfig | None = TermsConfig()
    mae: MaeConfig | None = None
    seed: int = Field(0, ge=0)
    steps: int = Field(2000, ge=1)
    batch: int = Field(256, ge=2)
    image_size: int = Field(48, ge=16, le=1024)
    backbone: BackboneConfig = BackboneConfig(name="resnet10_grid", dropout=0.0)
    grid: int = Field(GRID, ge=1, le=16, description="read-out and heads: cells per side; 1 is global average pooling")
    dim: int = Field(GRID_DIM, ge=2, description="principal components that the features keep")
    views: ViewConfig = ViewConfig()
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0, description="of matrices and filters; none on biases and norms")
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(40, ge=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the average that is kept")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads; null leaves torch's choice")
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")
    probe_every: int = Field(500, ge=1, description="steps between two points of the probe curve")

    @model_validator(mode="after")
    def _one(self) -> "PretrainConfig":
        if (self.terms is None) == (self.mae is None):
            raise ValueError("give either terms or mae, and null for the other")
        return self
