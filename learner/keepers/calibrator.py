"""Keeps a recipe calibrated: fits temperatures and LION's delta on out-of-fold predictions, now and then."""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.calibration import (
    MAX_LABELS,
    Temperature,
    enough,
    fit_delta,
    fit_temperature,
    folds_of,
    out_of_fold_cosines,
    out_of_fold_logits,
    tempered,
)
from learner.keepers.base import IdleKeeper, KeeperOptions
from learner.keepers.complement_bank import ComplementBank
from learner.keepers.disambiguator import Disambiguator
from learner.parts import Clock, StepContext, Survey

_LEARNED = 0.95  # of the cross-entropy of knowing nothing: above it there is nothing to calibrate


class CalibratorOptions(KeeperOptions):
    """Options of `Calibrator`.

    every: steps between two fits; the first is made at the start of a round. error_rate: the share of true classes that
    LION's bank may take in, which lowers its delta where that would take in more. similarity: fit the temperature of
    LION's disambiguation too.
    """

    every: int = Field(100, ge=1)
    error_rate: float = Field(0.05, gt=0, lt=1)
    similarity: bool = True


class Calibrator(IdleKeeper):
    """Set the scorer's `Temperature`, `ComplementBank.delta` and `Disambiguator.temperature`.

    Fitted on single answers whose features the encoder has not been trained on: a frozen encoder. Feature adapters,
    which have seen the labels, make the fit too mild. With too few answers (`calibration.enough`), or before the head
    has learned anything, everything stays as it was.
    """

    name = "calibrator"

    def __init__(
        self,
        num_classes: int,
        options: CalibratorOptions,
        temperature: Temperature,
        scale: float,
        bank: ComplementBank | None,
        doubts: Disambiguator | None,
    ) -> None:
        """Start uncalibrated; scale is what the head multiplies features with; bank and doubts may be absent."""
        self.num_classes = num_classes
        self.options = options
        self.temperature = temperature
        self.scale = scale
        self.bank = bank
        self.doubts = doubts if doubts is not None and doubts.options.similarity != "cosine" else None

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for the clean view at the start and after every so many steps."""
        return "x" if clock.step % self.options.every == 0 else None

    @torch.no_grad()
    def survey(self, survey: Survey) -> None:
        """Fit on the single answers of a survey, read with the temperature in force."""
        single = (survey.given >= 0).nonzero()[:MAX_LABELS, 0]
        classes = survey.given[single]
        if not enough(classes, self.num_classes):
            return
        features, fold = survey.features[single].float(), folds_of(survey.rows[single])
        head = tempered(survey.p[single].float(), 1 / self.temperature.value)
        fit = -head.gather(1, classes[:, None]).clamp(min=1e-30).log().mean()
        if float(fit) > _LEARNED * math.log(self.num_classes):
            return
        logits = out_of_fold_logits(features * self.scale, classes, fold, self.num_classes, float(fit))
        # Never below 1: sharper readings choose more pseudo-labels, which make the head sharper still.
        self.temperature.value.fill_(fit_temperature(logits, classes, low=1.0))
        if self.bank is not None:
            p = tempered(torch.softmax(logits, dim=1), self.temperature.value)
            p_true = p.gather(1, classes[:, None])[:, 0]
            self.bank.delta = fit_delta(p_true, self.bank.options.delta, self.options.error_rate)
        if self.doubts is not None and self.options.similarity:
            mean = F.normalize(survey.pool.float(), dim=1).mean(dim=0)
            directions = F.normalize(F.normalize(features, dim=1) - mean, dim=1)
            cosines = out_of_fold_cosines(directions, classes, fold, self.num_classes)
            self.doubts.temperature = fit_temperature(cosines, classes, 0.01, 1.0)

    def before_target(self, ctx: StepContext) -> None:
        """Log what is in force."""
        ctx.logs["calibration/temperature"] = self.temperature.value
        if self.bank is not None:
            # filled on the device: copying a number there would wait for it
            ctx.logs["calibration/delta"] = ctx.scores["l"].p.new_full((), self.bank.delta)

    def state_dict(self) -> dict[str, Tensor]:
        """Return delta and the disambiguator's temperature; the scorer's is kept with the weights."""
        delta = self.bank.delta if self.bank is not None else 0.0
        similarity = self.doubts.temperature if self.doubts is not None else 0.0
        return {"fitted": torch.tensor([delta, similarity], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        delta, similarity = state["fitted"].tolist()
        if self.bank is not None:
            self.bank.delta = delta
        if self.doubts is not None:
            self.doubts.temperature = similarity
