"""Keeps a recipe calibrated: fits temperatures and LION's delta on out-of-fold predictions, now and then."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.calibration import (
    MAX_LABELS,
    MIN_LABELS,
    Temperature,
    enough,
    fit_delta,
    fit_temperature,
    folds_of,
    foretold,
    match_confidence,
    out_of_fold_cosines,
)
from learner.keepers.base import IdleKeeper, KeeperOptions
from learner.keepers.complement_bank import ComplementBank
from learner.keepers.disambiguator import Disambiguator
from learner.parts import Clock, StepContext, Survey


class CalibratorOptions(KeeperOptions):
    """Options of `Calibrator`.

    every: steps between two fits; the first is made at the start of a round, one more before its last step.
    error_rate: the share of true classes that LION's bank may take in, which lowers its delta where that would take in
    more. similarity: fit the temperature of LION's disambiguation too.
    """

    every: int = Field(100, ge=1)
    error_rate: float = Field(0.05, gt=0, lt=1)
    similarity: bool = True


class Calibrator(IdleKeeper):
    """Set the scorer's `Temperature`, `ComplementBank.delta` and `Disambiguator.temperature`.

    Fitted on single answers and on images without any, whatever the recipe adds to the backbone: how right it can be
    twins foretell on the backbone's features, how sure it is its own scorer says. That holds for a frozen encoder;
    features of one in training have seen the labels, and the fit is too mild. The recipe is taken to be as right as the
    twins, and the answered images to be a fair sample: a recipe that is better stays too modest, one that is worse, or
    a pool that is harder, leaves it too sure. With too few answers (`calibration.enough`), or too few images without,
    everything stays as it was.
    """

    name = "calibrator"

    def __init__(
        self,
        num_classes: int,
        options: CalibratorOptions,
        temperature: Temperature,
        scale: float | None,
        bank: ComplementBank | None,
        doubts: Disambiguator | None,
    ) -> None:
        """Start uncalibrated; scale: of the head's unit features, None where they keep their length.

        Bank and doubts may be absent.
        """
        self.num_classes = num_classes
        self.options = options
        self.temperature = temperature
        self.scale = scale
        self.bank = bank
        self.doubts = doubts if doubts is not None and doubts.options.similarity != "cosine" else None

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for the clean view at the start, now and then, and at the end, for what is saved."""
        return "x" if clock.step % self.options.every == 0 or clock.step == clock.steps - 1 else None

    @torch.no_grad()
    def survey(self, survey: Survey) -> None:
        """Fit on the single answers and the unanswered images of a survey, read with the temperature in force."""
        single = (survey.given >= 0).nonzero()[:MAX_LABELS, 0]
        classes, unseen = survey.given[single], survey.pool_p[survey.unanswered].float()
        if not enough(classes, self.num_classes) or len(unseen) < MIN_LABELS:
            return
        raw, fold = survey.raw[single].float(), folds_of(survey.rows[single])
        features = raw if self.scale is None else F.normalize(raw, dim=1) * self.scale
        log_p = foretold(features, classes, fold, self.num_classes)
        # Never below 1: sharper readings choose more pseudo-labels, which make the head sharper still.
        uncalibrated = unseen.clamp(min=torch.finfo(unseen.dtype).tiny).log() * self.temperature.value
        right = float((log_p.argmax(dim=1) == classes).double().mean())
        self.temperature.value.fill_(match_confidence(uncalibrated, right))
        if self.bank is not None:
            p_true = log_p.gather(1, classes[:, None])[:, 0].exp()
            self.bank.delta = fit_delta(p_true, self.bank.options.delta, self.options.error_rate)
        if self.doubts is not None and self.options.similarity:
            unit = F.normalize(raw, dim=1)
            directions = F.normalize(unit - unit.mean(dim=0), dim=1)
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
