"""Make a run folder: everything a training round needs, frozen at one `label_seq` (ALGORITHMS.md 11.4)."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from annotator import encoders
from annotator.chains import chains
from annotator.durable import sync_folder
from annotator.errors import InputError, LearnerError
from annotator.ingest.crops import Square, parse_crop
from annotator.loop.embed import PixelShards
from annotator.loop.labels import UNUSABLE, LabelArrays, arrays
from annotator.records import Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import PoolTable
from learner.config import RunConfig
from learner.errors import InputError as LearnerInputError

FIRST_STEPS = 300
FIRST_STEPS_PER_SECOND = 2.0
"""What the slowest machine manages: a first round of a short `round_minutes` must not take minutes."""
TRAINING_SHARE = 0.8
"""Share of `round_minutes` for training; the rest is for reading the pool."""
MIN_STEPS = 10
FRESH_RATE, TRAINED_RATE = 1e-3, 5e-4
"""Learning rates of a round that began from random weights, and from trained ones (the papers')."""
_NUMBER = re.compile(r"-(\d+)$")
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """What is asked for beside the workspace's settings: a method, a YAML file with other values of the run."""

    method: str | None = None
    config: Path | None = None


def build_config(workspace: Workspace, request: RoundRequest, steps: int) -> RunConfig:
    """Return the configuration of a run: settings of the workspace, then the file, then the method asked for.

    Raises:
        InputError: the file cannot be read, or a key or value in it is wrong.
    """
    settings, weights = workspace.settings.learner, encoders.first_weights(workspace)
    own: dict[str, Any] = {
        "method": settings.methods[0],
        "backbone": {"name": settings.backbone, "weights": weights},
        "optimizer": {"lr": FRESH_RATE if weights is None else TRAINED_RATE},
        "steps": steps,
    }
    asked = {} if request.method is None else {"method": request.method}
    values = run_values(workspace, own, request.config, asked)
    try:
        return RunConfig.parse(values, str(request.config or "workspace.yaml"))
    except LearnerInputError as error:
        raise InputError(str(error)) from error


def run_values(workspace: Workspace, own: dict[str, Any], file: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run in a child process: the workspace's and its own, the file's, then what was asked for.

    Raises:
        InputError: the file cannot be read, or the size differs from the cache's.
    """
    settings = workspace.settings.learner
    shared = ("image_size", "device", "precision", "threads")
    values: dict[str, Any] = {name: getattr(settings, name) for name in shared} | own
    if file is not None:
        values |= _read_overrides(file)
    values |= asked
    if values["image_size"] != settings.image_size:
        raise InputError(
            f"image_size {values['image_size']}: the cache of this workspace holds {settings.image_size} pixels only"
        )
    return values


def _read_overrides(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no mapping of settings")
    return data


def planned_steps(workspace: Workspace, last_metrics: dict[str, float] | None) -> int:
    """Return how many steps fit into `round_minutes`, by the speed of the last round; a careful number at first."""
    seconds = workspace.settings.learner.round_minutes * 60 * TRAINING_SHARE
    rate = (last_metrics or {}).get("steps_per_second", 0.0)
    if rate <= 0:
        return max(MIN_STEPS, min(FIRST_STEPS, int(seconds * FIRST_STEPS_PER_SECOND)))
    return max(MIN_STEPS, int(seconds * rate))


def make_round(workspace: Workspace, store: LabelStore, request: RoundRequest) -> Path:
    """Freeze labels and pool into a new folder under `runs/` and return it. It appears complete or not at all.

    The round goes on from the newest snapshot of its own method. A method's first round starts anew, and so does the
    first after backbone or start have changed: after the encoder was adapted to the pool, say.

    Raises:
        InputError: the configuration asked for is wrong.
        LearnerError: there is nothing to train on, or no pixels.
    """
    previous = _previous(workspace, store, build_config(workspace, request, 1))
    config = build_config(workspace, request, planned_steps(workspace, previous.metrics if previous else None))
    label_seq, view = store.decisions.label_view()
    table = store.images.table()
    pixels = PixelShards(workspace.folder("cache") / str(config.image_size))
    pool = cached(representatives(table), pixels)
    every_label = arrays(store.decisions.labels(), workspace.settings.taxonomy.slugs)
    labels = arrays(view, workspace.settings.taxonomy.slugs)
    labels = labels.take(labels.trainable & np.isin(labels.rows, pool))
    if not len(labels):
        raise LearnerError("no labeled face to train on yet; label some first")
    folder = workspace.folder("runs")
    name = f"{config.method}-{next_number(workspace):04d}"
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.mkdir()
    config.save(temporary / "config.json")
    _write_view(temporary / "view.npz", labels, label_seq, workspace.settings.taxonomy.slugs)
    truth = _truth(workspace, store, table, every_label, pixels)
    np.save(temporary / "unlabeled.npy", unlabeled(pool, table, labels, every_label))
    np.save(temporary / "all.npy", np.union1d(pool, truth[0]))
    if len(truth[0]):
        np.savez(temporary / "eval.npz", rows=truth[0], truth=truth[1], split=np.array(truth[2]))
    boxes = _boxes(store)
    if boxes is not None:
        np.save(temporary / "boxes.npy", boxes)
    where = {
        "cache": str(pixels.folder),
        "previous": str(workspace.folder("snapshots") / previous.id) if previous else None,
        "image_size": config.image_size,
    }
    (temporary / "pool.json").write_text(json.dumps(where), encoding="utf-8")
    temporary.rename(folder / name)
    sync_folder(folder)
    return folder / name


def _previous(workspace: Workspace, store: LabelStore, config: RunConfig) -> Snapshot | None:
    """Return the newest snapshot of the run's method whose folder is there, if it began as this run would."""
    own = chains(store.learning.snapshots()).get(config.method, [])
    newest = next((s for s in reversed(own) if (workspace.folder("snapshots") / s.id).is_dir()), None)
    if newest is None:
        return None
    try:
        before = RunConfig.load(workspace.folder("snapshots") / newest.id / "config.json").backbone
    except LearnerInputError as error:
        raise InputError(str(error)) from error
    same = before.name == config.backbone.name and encoders.origin(before.weights) == encoders.origin(
        config.backbone.weights
    )
    return newest if same else None


def unfinished(workspace: Workspace) -> Path | None:
    """Return the run folder that a killed round left, or None; delete half-made, failed and older ones."""
    folder = workspace.folder("runs")
    runs = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path / "failed.json").exists():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            runs.append(path)
    runs.sort(key=lambda path: _number(path.name))
    for path in runs[:-1]:
        shutil.rmtree(path, ignore_errors=True)
    return runs[-1] if runs else None


def representatives(table: PoolTable) -> Rows:
    """Return the rows of the pool, one of each group of copies."""
    active_pool = (table.split == 0) & (table.state == 0)
    return np.asarray(table.rows[active_pool & (table.rows == table.group)], dtype=np.int64)


def cached(rows: Rows, pixels: PixelShards) -> Rows:
    """Leave out faces whose pixels the importer is still writing."""
    return rows[pixels.has(rows)]


def unlabeled(pool: Rows, table: PoolTable, labels: LabelArrays, every: LabelArrays) -> Rows:
    """Return the pool without training labels, without what people called unusable, without reserved faces."""
    unusable = every.rows[every.state == UNUSABLE]
    left_out = np.concatenate([labels.rows, unusable, table.rows[table.reserved]])
    return pool[~np.isin(pool, left_out)]


def _truth(
    workspace: Workspace, store: LabelStore, table: PoolTable, labels: LabelArrays, pixels: PixelShards
) -> tuple[Rows, Rows, str]:
    """Return rows, class indices and the name of what a round is measured on.

    The validation split's given labels where there are any, else what people said about the reserved random faces.
    """
    place = {slug: k for k, slug in enumerate(workspace.settings.taxonomy.slugs)}
    known = [(t.row, place[t.truth]) for t in store.images.truth("val") if t.truth in place]
    name = "val"
    if not known:
        kept = np.isin(labels.rows, table.rows[table.reserved]) & (labels.given >= 0)
        known = list(zip(labels.rows[kept].tolist(), labels.given[kept].tolist(), strict=True))
        name = "reserved"
    rows = np.array([row for row, _ in sorted(known)], dtype=np.int64)
    classes = np.array([k for _, k in sorted(known)], dtype=np.int64)
    cached = pixels.has(rows)
    return rows[cached], classes[cached], name


def _boxes(store: LabelStore) -> NDArray[np.float32] | None:
    """Return left, top, right, bottom (highest row + 1, 4) of each face in shares of its square, NaN where unknown.

    None when no face of the workspace is known.
    """
    known = store.faces.squares()
    if not known:
        return None
    boxes = np.full((known[-1][0] + 1, 4), np.nan, dtype=np.float32)
    for row, crop, box in known:
        square = parse_crop(crop)
        if isinstance(square, Square):
            boxes[row] = square.shares(box)
    return boxes


def _write_view(path: Path, labels: LabelArrays, label_seq: int, classes: tuple[str, ...]) -> None:
    soft: NDArray[np.bool_] = np.asarray(labels.soft.any(axis=1), dtype=bool)
    allowed = labels.allowed | soft[:, None]
    np.savez(
        path,
        label_seq=np.int64(label_seq),
        classes=np.array(classes, dtype=str),
        rows=labels.rows,
        target=labels.targets(),
        allowed=allowed,
        # What is left of a candidate set or of "not these" rules out the rest; one class alone may still be doubted.
        excluded=~allowed & (labels.given < 0)[:, None],
        given=labels.given,
        locked=labels.locked,
        stamp=labels.stamp,
    )


def next_number(workspace: Workspace) -> int:
    """Return the number after the highest of a run, snapshot or encoder of the pool."""
    names = [p.name for kind in ("runs", "snapshots") for p in workspace.root.glob(f"{kind}/*")]
    names += [info.source for info in encoders.folders(workspace).values()]
    return max((_number(name) for name in names), default=0) + 1


def _number(name: str) -> int:
    match = _NUMBER.search(name)
    return int(match[1]) if match else 0
