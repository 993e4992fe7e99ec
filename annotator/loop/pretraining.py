"""The run folder in which `learner.pretrain.loop` adapts an encoder to the pool, and what becomes of the result."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotator import encoders
from annotator.durable import sync_folder
from annotator.encoders import RUN_PREFIX, EncoderFile
from annotator.errors import InputError, LearnerError
from annotator.loop.embed import PixelShards
from annotator.loop.labels import arrays
from annotator.loop.rounds import cached, next_number, representatives, run_values, unlabeled
from annotator.settings import POOL, RANDOM, SHIPPED, TIMM, Workspace
from annotator.store import LabelStore

JOB = "pretrain"
ENOUGH_TO_PROBE = 5
"""Labels of a class below which the probe's cross-validation leaves it out; without two such classes there is none."""
STEPS = 1000
"""From an encoder that knows faces; from random weights ask for more."""


@dataclass(frozen=True, slots=True)
class PretrainRequest:
    """What is asked for. start: first weights, None for the workspace's; config: a YAML file with other values."""

    start: str | None = None
    steps: int | None = None
    config: Path | None = None

    @classmethod
    def of(cls, payload: dict[str, object]) -> "PretrainRequest":
        """Read the payload of a job."""
        start, steps, config = payload.get("start"), payload.get("steps"), payload.get("config")
        return cls(
            str(start) if start is not None else None,
            int(str(steps)) if steps is not None else None,
            Path(str(config)) if config is not None else None,
        )

    def payload(self) -> dict[str, object]:
        """Return the payload of a job."""
        return {"start": self.start, "steps": self.steps, "config": str(self.config) if self.config else None}


def settings_of(workspace: Workspace, request: PretrainRequest) -> dict[str, Any]:
    """Return the values of the run's configuration, without torch: only the learner can check them all.

    Raises:
        InputError: the configuration file or the start's file cannot be read, or the size differs from the cache's.
    """
    backbone = _backbone(workspace, request.start)
    asked: dict[str, Any] = {} if request.steps is None else {"steps": request.steps}
    asked |= {} if request.start is None else {"backbone": backbone}
    return run_values(workspace, {"steps": STEPS, "backbone": backbone}, request.config, asked)


def _backbone(workspace: Workspace, start: str | None) -> dict[str, Any]:
    """Return the network that is adapted, and its first weights."""
    plain: dict[str, Any] = {"name": "resnet10_grid", "weights": None, "dropout": 0.0}
    start = workspace.settings.learner.start if start is None else start
    if start == RANDOM:
        return plain
    if start.startswith(TIMM):
        return plain | {"name": start.removeprefix(TIMM), "weights": "timm"}
    adapted = encoders.of_pool(workspace) if start == POOL else None
    if start in (SHIPPED, POOL) and adapted is None:
        return plain | {"weights": SHIPPED}
    path = adapted / encoders.WEIGHTS if adapted is not None else workspace.root / Path(start).expanduser()
    return plain | {"name": EncoderFile.read(path).backbone, "weights": str(path)}


def make_pretraining(workspace: Workspace, store: LabelStore, request: PretrainRequest) -> Path:
    """Freeze the pool into a new folder under `runs/` and return it. It appears complete or not at all.

    Validation and test faces, their copies, faces kept for validation and unusable ones are not learned from.

    Raises:
        InputError: the configuration asked for is wrong.
        LearnerError: there are no faces to learn from.
    """
    values = settings_of(workspace, request)
    table = store.images.table()
    pixels = PixelShards(workspace.folder("cache") / str(values["image_size"]))
    every = arrays(store.decisions.labels(), workspace.settings.taxonomy.slugs)
    rows = unlabeled(cached(representatives(table), pixels), table, every.take(every.rows < 0), every)
    if len(rows) < 2:
        raise LearnerError(f"{len(rows)} faces to learn from; import some first")
    folder = workspace.folder("runs")
    name = f"{RUN_PREFIX}{next_number(workspace):04d}"
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.mkdir()
    np.save(temporary / "rows.npy", rows)
    labels = every.take(every.trainable & (every.given >= 0) & np.isin(every.rows, rows))
    if (np.bincount(labels.given, minlength=2) >= ENOUGH_TO_PROBE).sum() >= 2:
        np.savez(temporary / "labels.npz", rows=labels.rows, label=labels.given.astype(np.int64))
    (temporary / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (temporary / "pool.json").write_text(json.dumps({"cache": str(pixels.folder)}), encoding="utf-8")
    temporary.rename(folder / name)
    sync_folder(folder)
    return folder / name


def publish_pretraining(workspace: Workspace, run: Path) -> str:
    """Make the run's encoder the workspace's start; its folder goes. Return the encoder's id.

    Its features are made in the background: until they are complete the earlier ones serve.

    Raises:
        LearnerError: the result is not whole.
    """
    beside = tuple(path for path in (run / encoders.CURVE,) if path.exists())
    try:
        folder = encoders.publish(workspace, run / "out" / encoders.WEIGHTS, run.name, beside)
    except InputError as error:
        raise LearnerError(f"{run} has no usable result: {error}") from error
    if workspace.settings.learner.start != POOL:
        workspace.start_from(POOL)
    shutil.rmtree(run, ignore_errors=True)
    return folder.name
