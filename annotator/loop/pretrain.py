"""`annotator pretrain`: adapt the encoder to the faces of the workspace, with the learner that runs or as one."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from annotator import encoders
from annotator.errors import InputError
from annotator.loop.jobs import Progress, follow
from annotator.loop.pretraining import JOB, PretrainRequest, settings_of
from annotator.settings import Workspace
from annotator.store import LabelStore


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """The encoder that was made, and its probe curve: {step, balanced_accuracy, …} per point."""

    encoder: str
    seconds: float
    curve: list[dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Say it in a line or two."""
        said = f"{self.encoder} is adapted to these faces after {self.seconds:.0f} s; learner.start is pool now"
        if not self.curve:
            return f"{said}\ntoo few labels to measure it: two classes with five labels each are needed"
        last = self.curve[-1]
        return (
            f"{said}\nbalanced accuracy {last['balanced_accuracy']:.3f} on {last['labels']:.0f} labels, "
            "each fifth read by a regression on the others"
        )


def pretrain(workspace: Workspace, request: PretrainRequest, progress: Progress | None = None) -> PretrainResult:
    """Adapt the encoder to the pool and publish it. Where a learner runs already, ask it to and wait.

    Raises:
        InputError: the configuration is wrong.
        LearnerError: the run failed; the message carries the last lines of its log.
    """
    check(workspace, request)
    began = time.monotonic()
    with LabelStore.open(workspace) as store:
        job = store.learning.file_job(JOB, request.payload())
    finished = follow(workspace, job, progress, lambda learner: learner.base.settled)
    name = (finished.message or "").removeprefix("encoder ")
    curve = encoders.read_curve(workspace.folder("encoders") / name / encoders.CURVE)
    return PretrainResult(name, time.monotonic() - began, curve)


def check(workspace: Workspace, request: PretrainRequest) -> None:
    """Tell wrong input before anything starts. This loads torch, which the running learner never does.

    Raises:
        InputError: the configuration holds an unknown key or a wrong value.
    """
    from learner.errors import InputError as LearnerInputError
    from learner.pretrain.config import PretrainConfig

    try:
        PretrainConfig.parse(settings_of(workspace, request), str(request.config or "annotator pretrain"))
    except LearnerInputError as error:
        raise InputError(str(error)) from error
