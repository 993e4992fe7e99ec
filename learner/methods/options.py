"""Options that every method shares."""

from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field


class Layout(TypedDict):
    """The fields of a recipe that say how the network is run."""

    feature_norm: str
    feature_scale: float
    forward_mode: str
    pseudo_source: str
    batchnorm: str


class Options(BaseModel):
    """Frozen; an unknown key is an error.

    feature_norm, feature_scale: logits are W (scale * f / |f|) + b, or W f + b with "none"; forward_mode: views
    through the network together or one by one (BatchNorm sees the difference); pseudo_source: which model makes the
    pseudo-labels; batchnorm: whether unlabeled views move BatchNorm's running statistics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature_norm: Literal["none", "l2"] = "l2"
    feature_scale: float = Field(16.0, gt=0)
    forward_mode: Literal["concat", "separate"] = "concat"
    pseudo_source: Literal["student_train", "student_eval", "ema_eval"] = "ema_eval"
    batchnorm: Literal["update", "freeze"] = "update"

    def layout(self) -> Layout:
        """Return the recipe fields that come straight from these options."""
        return Layout(
            feature_norm=self.feature_norm,
            feature_scale=self.feature_scale,
            forward_mode=self.forward_mode,
            pseudo_source=self.pseudo_source,
            batchnorm=self.batchnorm,
        )
