"""`annotator retrain`: one round, published, and an order made with it; for cron, systemd and Slurm."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from annotator.chains import chains, longest_waiting
from annotator.errors import InputError, LearnerError
from annotator.loop.jobs import Progress, follow
from annotator.loop.labels import arrays
from annotator.loop.rounds import RoundRequest, build_config
from annotator.loop.training import JOB
from annotator.settings import Workspace
from annotator.store import LabelStore


@dataclass(frozen=True, slots=True)
class RetrainResult:
    """What a retraining did. `snapshot` is None when too few labels were new."""

    snapshot: str | None
    method: str | None
    new_labels: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Say it in a line."""
        if self.snapshot is None:
            return f"nothing to do: {self.new_labels} new labels since the last round"
        measured = [
            f"{name.removeprefix('val_')} {self.metrics[name]:.3f}"
            for name in ("val_overall", "val_balanced")
            if name in self.metrics
        ]
        accuracy = f", validation {', '.join(measured)}" if measured else ""
        return f"published {self.snapshot} after {self.seconds:.0f} s on {self.new_labels} new labels{accuracy}"


def retrain_once(
    workspace: Workspace,
    method: str | None = None,
    config: Path | None = None,
    if_new_labels: int | None = None,
    progress: Progress | None = None,
) -> RetrainResult:
    """Train and publish one round. Where a learner runs already, ask it to and wait: there are never two.

    Args:
        workspace: where.
        method: the recipe, which goes on from its own last snapshot; None takes what `config` names, else the one whose
            turn it is.
        config: a YAML file with other values of the run.
        if_new_labels: do nothing with fewer labels that the method has not learned from.
        progress: hears done, total and a note.

    Raises:
        InputError: the configuration is wrong.
        LearnerError: the round failed; the message carries the last lines of its log.
    """
    config = config.resolve() if config is not None else None
    began = time.monotonic()
    with LabelStore.open(workspace) as store:
        if method is None and config is None:
            method = longest_waiting(store.learning.snapshots(), workspace.settings.learner.methods)
        new = new_labels(workspace, store, _check(workspace, RoundRequest(method, config)))
        if if_new_labels is not None and new < if_new_labels:
            return RetrainResult(None, None, new, 0.0)
        job = store.learning.file_job(JOB, _payload(method, config))
    finished = follow(workspace, job, progress)
    with LabelStore.open(workspace) as store:
        name = (finished.message or "").removeprefix("snapshot ")
        snapshot = next((s for s in store.learning.snapshots() if s.id == name), None)
    if snapshot is None:
        raise LearnerError(f"job {job.id} ended without a snapshot: {finished.message}")
    return RetrainResult(snapshot.id, snapshot.method, new, time.monotonic() - began, snapshot.metrics)


def _check(workspace: Workspace, request: RoundRequest) -> str:
    """Tell wrong input before anything starts, and return the method that will be trained.

    Raises:
        InputError: the configuration, the method or one of its options is wrong.
    """
    run = build_config(workspace, request, 1)
    check_method(run.method, run.options)
    return run.method


def check_method(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Ask the recipes whether there is such a method. This loads torch, which the running learner never does.

    Raises:
        InputError: there is none, or one of its options is wrong.
    """
    from learner import methods

    try:
        methods.resolve(name, options or {})
    except ValueError as error:
        raise InputError(str(error)) from error


def new_labels(workspace: Workspace, store: LabelStore, method: str) -> int:
    """Return how many labels have come since those of the method's last round were frozen."""
    last = max((s.label_seq for s in chains(store.learning.snapshots()).get(method, [])), default=0)
    _, view = store.decisions.label_view()
    labels = arrays(view, workspace.settings.taxonomy.slugs)
    return int((labels.trainable & (labels.stamp > last)).sum())


def _payload(method: str | None, config: Path | None) -> dict[str, object]:
    return {"trigger": "command", "method": method, "config": str(config) if config is not None else None}
