"""Turn a finished run into a snapshot: verified, moved as a whole, then recorded (DESIGN 4)."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from annotator import encoders
from annotator.chains import kept
from annotator.durable import sync_folder
from annotator.errors import LearnerError
from annotator.features import EncoderInfo, FeatureShards
from annotator.records import Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore

FILES = (
    "model.safetensors",
    "state.safetensors",
    "state.json",
    "config.json",
    "metrics.json",
    "signals.parquet",
    "rows.npy",
    "features.npy",
    "probs.npy",
)
BULK = ("rows.npy", "features.npy", "probs.npy")
"""Readings of the whole pool: kept only for the newest snapshot of each method and the serving one."""
SHARD_ROWS = 16_384


def verify(out: Path, num_classes: int) -> None:
    """Check that a run's result is whole: every file readable, shapes agree, numbers finite.

    Raises:
        LearnerError: something is missing or wrong; the message names it.
    """
    missing = [name for name in FILES if not (out / name).is_file()]
    if missing:
        raise LearnerError(f"{out} lacks {', '.join(missing)}")
    try:
        for name in ("state.json", "config.json", "metrics.json"):
            json.loads((out / name).read_text(encoding="utf-8"))
        for name in ("model.safetensors", "state.safetensors"):
            with safe_open(out / name, framework="numpy") as tensors:
                tensors.keys()
        rows, features, probs = (np.load(out / name, allow_pickle=False, mmap_mode="r") for name in BULK)
    except (OSError, ValueError, SafetensorError) as error:
        raise LearnerError(f"{out} is damaged: {error}") from error
    if len(features) != len(rows) or probs.shape != (len(rows), num_classes):
        raise LearnerError(f"{out}: rows {rows.shape}, features {features.shape}, probs {probs.shape} do not fit")
    if not np.isfinite(probs).all() or not np.isfinite(features).all():
        raise LearnerError(f"{out}: features or probabilities are not finite")


def publish(workspace: Workspace, store: LabelStore, run: Path) -> Snapshot:
    """Move the result of a run to `snapshots/<run name>` and record it; the run folder goes.

    Raises:
        LearnerError: the result is not whole.
    """
    out, final = run / "out", workspace.folder("snapshots") / run.name
    if not final.exists():
        verify(out, len(workspace.settings.taxonomy.slugs))
        shutil.copyfile(run / "view.npz", out / "view.npz")
        with (out / "view.npz").open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(out)
        out.rename(final)
        sync_folder(final.parent)
    snapshot = record(store, final)
    shutil.rmtree(run, ignore_errors=True)
    return snapshot


def record(store: LabelStore, folder: Path) -> Snapshot:
    """Record a complete snapshot folder in the database, once."""
    known = next((s for s in store.learning.snapshots() if s.id == folder.name), None)
    if known is not None:
        return known
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    snapshot = Snapshot(
        id=folder.name,
        method=str(metrics["method"]),
        label_seq=int(metrics["label_seq"]),
        metrics=flat(metrics),
        published_at=datetime.now(UTC),
        serving=False,
    )
    store.learning.publish_snapshot(snapshot)
    return snapshot


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the numbers worth a column: speed, counts, and accuracy on the validation faces."""
    val = metrics.get("val") or {}
    counts = metrics.get("counts") or {}
    found = {
        "steps": metrics.get("steps"),
        "steps_per_second": metrics.get("steps_per_second"),
        "seconds": metrics.get("seconds"),
        "round": metrics.get("round"),
        "labeled": counts.get("labeled"),
        "unlabeled": counts.get("unlabeled"),
        "val_overall": val.get("overall"),
        "val_balanced": val.get("balanced"),
        "val_log_loss": val.get("log_loss"),
        "val_ece": val.get("ece"),
        "val_faces": val.get("num"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def recover(workspace: Workspace, store: LabelStore) -> None:
    """Finish what a crash interrupted: record snapshots that were moved but not recorded, delete the leftovers."""
    folder = workspace.folder("snapshots")
    recorded = {s.id for s in store.learning.snapshots()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir() and path.name not in recorded:
            record(store, path)
            recorded.add(path.name)
    for run in workspace.folder("runs").iterdir():
        if run.name in recorded:
            shutil.rmtree(run, ignore_errors=True)


def prune(workspace: Workspace, store: LabelStore, keep: int) -> None:
    """Delete the folders of old snapshots, and the bulk of all but each method's newest and the serving one."""
    folder = workspace.folder("snapshots")
    present = [s for s in store.learning.snapshots() if (folder / s.id).is_dir()]
    stay, whole = kept(present, keep)
    for snapshot in present:
        if snapshot.id not in stay:
            shutil.rmtree(folder / snapshot.id, ignore_errors=True)
        elif snapshot.id not in whole:
            for name in BULK:
                (folder / snapshot.id / name).unlink(missing_ok=True)


def features_of(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return the rows (n,) ascending and the features (n, d) of a snapshot, centred, of typical length one.

    Features behind a ReLU point the same way; without their mean every cosine is near one. Third comes what was done to
    them: mean (d,) was subtracted, then they were multiplied by scale (1,).
    """
    rows = np.load(folder / "rows.npy", allow_pickle=False)
    features = np.load(folder / "features.npy", allow_pickle=False).astype(np.float32)
    order = np.argsort(rows)
    mean = features.mean(axis=0)
    centred = features[order] - mean
    length = float(np.sqrt((centred * centred).sum(axis=1).mean()))
    scale = np.array([1 / max(length, 1e-6)], dtype=np.float32)
    return rows[order], centred * scale, {"mean": mean, "scale": scale}


def build_encoder(workspace: Workspace, snapshot_id: str) -> FeatureShards:
    """Write `encoders/<snapshot id>` from a snapshot's features, whole or not at all, and return it."""
    final = workspace.folder("encoders") / snapshot_id
    if final.exists():
        return FeatureShards(final)
    rows, features, done = features_of(workspace.folder("snapshots") / snapshot_id)
    temporary = final.with_name(f".making-{snapshot_id}")
    shutil.rmtree(temporary, ignore_errors=True)
    info = EncoderInfo(snapshot_id, "snapshot", features.shape[1], workspace.settings.learner.image_size)
    shards = FeatureShards.create(temporary, info, done)
    for start in range(int(rows[0]), int(rows[-1]) + 1, SHARD_ROWS):
        stop = min(start + SHARD_ROWS, int(rows[-1]) + 1)
        here = (rows >= start) & (rows < stop)
        block = np.zeros((stop - start, features.shape[1]), dtype=np.float16)
        block[rows[here] - start] = features[here].astype(np.float16)
        shards.append(start, block)
    temporary.rename(final)
    sync_folder(final.parent)
    return FeatureShards(final)


def drop_encoders(workspace: Workspace, keep: set[str]) -> None:
    """Delete the features of snapshots that do not serve any more, and half-made ones."""
    for path in workspace.folder("encoders").glob(".making-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path, info in encoders.folders(workspace).items():
        if info.kind == "snapshot" and info.id not in keep:
            shutil.rmtree(path, ignore_errors=True)
