"""`annotator retrain`: one round, published, and an order made with it; for cron, systemd and Slurm."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from annotator.chains import chains, longest_waiting
from annotator.errors import InputError, LearnerError, WorkspaceBusyError
from annotator.loop.labels import arrays
from annotator.loop.learn import POLL_SECONDS, opened
from annotator.loop.rounds import RoundRequest, build_config
from annotator.loop.training import JOB
from annotator.records import Job
from annotator.settings import Workspace
from annotator.store import LabelStore

Progress = Callable[[int, int, str], None]
_BAR = 1000


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
    try:
        finished = _work(workspace, job, progress)
    except WorkspaceBusyError:
        finished = _wait(workspace, job, progress)
    if finished.state == "failed":
        raise LearnerError(finished.message or "training failed")
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


def _work(workspace: Workspace, job: Job, progress: Progress | None) -> Job:
    """Be the learner until the job is finished and an order is made with its result."""
    with opened(workspace) as learner:
        while True:
            worked = learner.tick()
            now = _find(learner.store, job)
            if now.state in ("done", "failed"):
                if len(learner.pool.rows):
                    learner.refresh()
                return now
            _tell(workspace, progress)
            time.sleep(0.0 if worked else POLL_SECONDS)


def _wait(workspace: Workspace, job: Job, progress: Progress | None) -> Job:
    """Follow the running learner until it has finished the job; become the learner if it ends before."""
    with LabelStore.open(workspace) as store:
        while True:
            now = _find(store, job)
            if now.state in ("done", "failed"):
                return now
            _tell(workspace, progress)
            time.sleep(0.5)
            if not _running(workspace):
                break
    try:
        return _work(workspace, job, progress)
    except WorkspaceBusyError:  # another one was faster
        return _wait(workspace, job, progress)


def _find(store: LabelStore, job: Job) -> Job:
    found = next((j for j in store.learning.jobs() if j.id == job.id), None)
    if found is None:
        raise LearnerError(f"job {job.id} is gone")
    return found


def _running(workspace: Workspace) -> bool:
    return bool(_report(workspace).get("state", "off") != "off")


def _report(workspace: Workspace) -> dict[str, Any]:
    try:
        data = json.loads((workspace.root / "learner.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _tell(workspace: Workspace, progress: Progress | None) -> None:
    if progress is not None:
        told = _report(workspace)
        progress(int(_BAR * (told.get("progress") or 0)), _BAR, str(told.get("state", "")))
