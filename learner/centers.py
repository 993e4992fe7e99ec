"""ReMoP's class centers: trainable vectors in feature space beside the head, part of the network's state.

What scorers, losses and the labeling tool need of them is written into `NetOut.aux` (ALGORITHMS.md 7).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from learner.keepers.base import KeeperOptions
from learner.losses import center_similarity, full_precision

COSINE, DOT, PRESENT, DISTANCE = "center_cosine", "center_dot", "center_present", "center_distance"


class CenterOptions(KeeperOptions):
    """Options of the centers H (K,d).

    update: by the gradient of L_c and L_reg at lr_scale times the head's rate, or as a moving average of class means,
    `decay` per observation. pull: L_c moves the centers with a weight of its own, 1, so that lambda_c weighs its pull
    on features alone; or with lambda_c as printed, where L_reg, a thousand times heavier, soon is all that moves them:
    under one Adam they become an ETF away from the features. init: the class means of labeled features, or N(0,1)
    (public code). averaged: the EMA model averages the centers too, instead of taking the student's. center: cosines
    are seen from the pool mean; without it non-negative features have cosines near 1 to every class.
    """

    update: Literal["gradient", "ema"] = "gradient"
    pull: Literal["own", "shared"] = "own"
    init: Literal["class_means", "normal"] = "class_means"
    lr_scale: float = Field(10.0, gt=0)
    decay: float = Field(0.99, ge=0, lt=1)
    averaged: bool = False
    center: bool = True

    def check(self) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the message says which and why.
        """
        given = self.model_fields_set
        for name in ("lr_scale", "pull"):
            if self.update == "ema" and name in given:
                raise ValueError(f"centers.{name} has no effect with centers.update 'ema', which has no gradient")
        if self.update == "ema" and self.init == "normal":
            raise ValueError("centers.update 'ema' averages features and so cannot start from centers.init 'normal'")
        if self.update == "gradient" and "decay" in given:
            raise ValueError("centers.decay has no effect with centers.update 'gradient'; set centers.update 'ema'")


class ClassCenters(nn.Module):
    """Centers H (K,d), which classes have one (K,) bool, and the pool mean m (d,): all saved with the network.

    A class without labels has no center until its first one. `lr_scale` and `averaged` are read by the trainer.
    """

    class_axes = {"vectors": (0,), "is_set": (0,)}  # noqa: RUF012 - a constant of the class

    vectors: Tensor
    is_set: Tensor
    mean: Tensor

    def __init__(self, num_classes: int, feature_dim: int, options: CenterOptions | None = None) -> None:
        """Start without centers, or with random ones where options.init says so.

        Raises:
            ValueError: see `CenterOptions.check`.
        """
        super().__init__()
        self.options = options or CenterOptions()
        self.options.check()
        self.averaged, self.lr_scale = self.options.averaged, self.options.lr_scale
        random = self.options.init == "normal"
        start = torch.zeros(num_classes, feature_dim)
        if random:  # its own generator: the weights that are drawn next stay those of a network without centers
            start.normal_(generator=torch.Generator().manual_seed(torch.initial_seed()))
        if self.options.update == "gradient":
            self.vectors = nn.Parameter(start)
        else:
            self.register_buffer("vectors", start)
        self.register_buffer("is_set", torch.full((num_classes,), random))
        self.register_buffer("mean", torch.zeros(feature_dim))

    def class_vectors(self) -> Tensor:
        """Return the centers (K,d); rows of unset classes mean nothing."""
        return self.vectors

    @property
    def origin(self) -> Tensor | None:
        """Return what cosines are seen from: the pool mean (d,), or None."""
        return self.mean if self.options.center else None

    def cosines(self, features: Tensor) -> Tensor:
        """Return the cosines (B,K) of features (B,d) to the centers, seen from `origin`; 0 for unset classes."""
        return center_similarity(features, self.vectors, self.origin) * self.is_set

    @torch.no_grad()
    def forward(self, f: Tensor, aux: dict[str, Tensor]) -> None:
        """Write cosines, dot products (B,K) and set classes (B,K) bool into aux; in eval mode distances (B,K) too."""
        with torch.autocast(f.device.type, enabled=False):
            f, h = full_precision(f.detach()), full_precision(self.vectors)
            aux[COSINE] = self.cosines(f)
            aux[DOT] = f @ h.T
            aux[PRESENT] = self.is_set.expand(len(f), -1)
            if not self.training:
                aux[DISTANCE] = torch.cdist(f, h, compute_mode="donot_use_mm_for_euclid_dist")

    @torch.no_grad()
    def place(self, classes: Tensor, means: Tensor) -> None:
        """Set the centers of classes (K,) bool to the rows of means (K,d); without waiting for the device."""
        self.vectors.copy_(torch.where(classes[:, None], means.to(self.vectors), self.vectors))
        self.is_set |= classes


def class_means(features: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean (K,d) of features (N,d) by classes (N,) int64, -1 for none, and how many each has (K,) int64."""
    member = F.one_hot(classes.clamp(min=0), num_classes) * (classes >= 0)[:, None]
    count = member.sum(dim=0)
    f = full_precision(features)
    return member.to(f.dtype).T @ f / count.clamp(min=1)[:, None], count
