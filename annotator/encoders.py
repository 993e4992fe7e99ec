"""The encoders of a workspace, without torch: which one it starts from, and the folders under `encoders/`.

A folder of a network holds its weights (`encoder.safetensors`) beside the features that it makes. It is complete once
every face that was cached had features; from then on it may serve.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from annotator.durable import read_object, sync_folder
from annotator.errors import AnnotatorError, InputError
from annotator.features import EncoderInfo, FeatureShards
from annotator.settings import POOL, RANDOM, SHIPPED, TIMM, Workspace
from learner.config import SHIPPED_FILE

WEIGHTS = "encoder.safetensors"
CURVE = "probe.jsonl"
NETWORK = "network"
RUN_PREFIX = "pretrain-"
_COMPLETE = "complete"
_GRID_NET = ("resnet10_grid", 3, 256)
"""The backbone whose read-out is part of it: only an encoder of the same grid and width fits."""


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """What the file of an encoder says of itself. `id` is that of `learner.pretrain.encoder.FaceEncoder`."""

    path: Path
    id: str
    backbone: str
    grid: int
    dim: int
    image_size: int

    @classmethod
    def read(cls, path: Path) -> "EncoderFile":
        """Read an encoder's file.

        Raises:
            InputError: it is missing, damaged or no encoder.
        """
        if not path.is_file():
            raise InputError(f"no encoder {path}; name another one with learner.start, or reinstall the project")
        digest = hashlib.sha256()
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["encoder"])
                for name in sorted(file.keys()):
                    digest.update(name.encode() + np.ascontiguousarray(file.get_tensor(name)).tobytes())
            name, backbone = str(about["name"]), str(about["backbone"]["name"])
            sizes = int(about["grid"]), int(about["dim"]), int(about["image_size"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no encoder ({error}); give one that `python -m learner pretrain` made"
            ) from error
        return cls(path, f"{name}-{digest.hexdigest()[:12]}", backbone, *sizes)

    def fits(self, backbone: str) -> bool:
        """Tell whether a network of that name can begin with these weights."""
        return self.backbone == backbone and (backbone != _GRID_NET[0] or (self.grid, self.dim) == _GRID_NET[1:])


def source_of(workspace: Workspace) -> Path | str | None:
    """Return what `learner.start` names: an encoder's file, "timm:NAME", or None for no network.

    "pool" is the shipped one until `annotator pretrain` has made another.
    """
    start = workspace.settings.learner.start
    if start == RANDOM:
        return None
    if start.startswith(TIMM):
        return start
    if start == POOL and (adapted := of_pool(workspace)) is not None:
        return adapted / WEIGHTS
    return SHIPPED_FILE if start in (SHIPPED, POOL) else workspace.root / Path(start).expanduser()


def first_weights(workspace: Workspace) -> str | None:
    """Return what a training round begins with: `learner.weights`, else the start where it has the same backbone.

    Raises:
        InputError: the start's file is missing or damaged.
    """
    settings = workspace.settings.learner
    if settings.weights is not None:
        return settings.weights
    source = source_of(workspace)
    if isinstance(source, str):
        return "timm" if source == TIMM + settings.backbone else None
    # An encoder of a pool with fewer faces than the read-out has features is narrower: then the shipped one it is.
    files = [] if source is None else [source, SHIPPED_FILE] if settings.start == POOL else [source]
    fitting = next((file for file in files if EncoderFile.read(file).fits(settings.backbone)), None)
    return SHIPPED if fitting == SHIPPED_FILE else None if fitting is None else str(fitting)


def origin(weights: str | None) -> str | None:
    """Return what tells first weights apart wherever the workspace lies: an encoder's folder, else the words."""
    return Path(weights).parent.name if weights is not None and weights.endswith(f"/{WEIGHTS}") else weights


def folders(workspace: Workspace) -> dict[Path, EncoderInfo]:
    """Return the folders under `encoders/` that can be read; a damaged one is derived data and is passed over."""
    found = {}
    for path in sorted(workspace.folder("encoders").iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            try:
                found[path] = EncoderInfo.read(path)
            except AnnotatorError:
                continue
    return found


def of_pool(workspace: Workspace) -> Path | None:
    """Return the folder of the newest encoder that was adapted to this pool."""
    own = {info.source: path for path, info in folders(workspace).items() if info.source.startswith(RUN_PREFIX)}
    return own[max(own, key=lambda source: int(source.removeprefix(RUN_PREFIX)))] if own else None


def of_hub(workspace: Workspace, source: str) -> Path | None:
    """Return the folder of the encoder made from "timm:NAME"."""
    return next((path for path, info in folders(workspace).items() if info.source == source), None)


def publish(workspace: Workspace, file: Path, source: str, beside: tuple[Path, ...] = ()) -> Path:
    """Copy an encoder's file (and small files `beside` it) into a folder of its own, whole or not at all; return it.

    Raises:
        InputError: the file is no encoder.
    """
    made = EncoderFile.read(file)
    final = workspace.folder("encoders") / made.id
    if final.is_dir():
        return final
    temporary = final.with_name(f".making-{made.id}")
    shutil.rmtree(temporary, ignore_errors=True)
    FeatureShards.create(temporary, EncoderInfo(made.id, NETWORK, made.dim, made.image_size, source))
    for path in (file, *beside):
        shutil.copyfile(path, temporary / path.name)
        with (temporary / path.name).open("rb") as copy:
            os.fsync(copy.fileno())
    if file.name != WEIGHTS:
        (temporary / file.name).rename(temporary / WEIGHTS)
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)
    return final


def is_complete(folder: Path) -> bool:
    """Tell whether every face that was there had features once."""
    return (folder / _COMPLETE).exists()


def mark_complete(folder: Path) -> None:
    """Keep that every face has features."""
    (folder / _COMPLETE).touch()


def drop(workspace: Workspace, keep: set[str]) -> None:
    """Delete what no one starts from or serves any more: all but `keep`, the newest of the pool, and snapshots."""
    newest = of_pool(workspace)
    for path, info in folders(workspace).items():
        if info.kind != "snapshot" and info.id not in keep and path != newest:
            shutil.rmtree(path, ignore_errors=True)


def pretraining(workspace: Workspace) -> dict[str, Any]:
    """Return how the adaptation to the pool stands: `state`, `progress`, `eta_s`, `curve`, `measured`.

    `state` is none, running, failed or done; `curve` has {step, balanced_accuracy, accuracy, labels} per point;
    `measured` tells whether there were enough labels for points when it began.
    """
    runs = [p for p in workspace.folder("runs").glob(f"{RUN_PREFIX}*") if p.is_dir()]
    if runs:
        run = max(runs, key=lambda path: path.name)
        told = read_object(run / "progress.json")
        failed = (run / "failed.json").exists()
        return {
            "state": "failed" if failed else "running",
            "progress": told.get("progress"),
            "eta_s": told.get("eta_s"),
            "curve": read_curve(run / CURVE),
            "measured": (run / "labels.npz").exists(),
        }
    done = of_pool(workspace)
    curve = read_curve(done / CURVE) if done is not None else []
    state = "none" if done is None else "done"
    return {"state": state, "progress": None, "eta_s": None, "curve": curve, "measured": bool(curve)}


def read_curve(path: Path) -> list[dict[str, float]]:
    """Read the points written so far; the last line may be half there."""
    points = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            points.append(json.loads(line))
        except ValueError:
            break
    return points
