"""One cell of a grid: its run folder, the run, and `results.json`. Killed at any moment, the same call goes on."""

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner import checkpoint, manifest, snapshot
from learner.benchmark.faces import Dataset
from learner.benchmark.grid import Cell, digest
from learner.benchmark.watch import Watcher, pseudo_quality, read_log
from learner.config import RunConfig, write_json
from learner.data import Rows, load_view
from learner.device import make_fabric
from learner.errors import InputError, LearnerError
from learner.evaluate import Evaluation, evaluate
from learner.manifest import SPLITS
from learner.models import read_weights
from learner.predict import Predictor
from learner.round import RunFiles, StoppedError, run_round
from learner.sources import make_source

RARE = ("disgust", "contempt")  # 24-34 validation images each on FER+
FINAL_SHARE = 0.1  # of a run: what "at the end" means for pseudo-labels


def prepare(cell: Cell, data: Dataset, folder: Path, validations: int) -> None:
    """Write the run folder of a cell, or check that the one there is the same; a half-written one never shows.

    Raises:
        InputError: the folder holds a cell of another configuration or data.
    """
    try:
        labeled = cell.split.draw(data.manifest, cell.seed)
        wanted = cell.split.counts(data.manifest)
    except ValueError as error:
        raise InputError(f"{cell.dataset.name}, {cell.split.name}: {error}") from error
    if len(labeled) == 0:
        raise InputError(f"{cell.dataset.name}, {cell.split.name}: no label at all")
    names = data.manifest.names
    note = cell.describe() | {
        "labels_hash": digest([_image_id(data.manifest, row) for row in labeled]),
        "evaluation_hash": digest(data.evaluation.tolist()),
        "counts": np.bincount(data.manifest.label[labeled], minlength=len(data.manifest.classes)).tolist(),
        "wanted": wanted,
        "validate_every": max(1, cell.config.steps // validations),
    }
    if data.bank is not None:
        note |= {"initialisation": f"frozen features: {data.bank.asked}", "bank": data.bank.encoder}
    if data.boxes is not None:
        note["boxes_hash"] = digest(data.boxes.tobytes().hex())
    if (folder / "cell.json").exists():
        _same(folder, note)
        if not (folder / "results.json").exists():
            _point(folder, cell, data)
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    split = np.full(len(names), SPLITS.index("test"))
    split[data.pool], split[labeled], split[data.evaluation] = 0, 0, SPLITS.index("val")
    shown = replace(data.manifest, split=split)
    manifest.make_run(shown, cell.config, labeled, temporary, data.cache(cell.config.image_size).resolve())
    np.save(temporary / "all.npy", data.evaluation)
    if data.boxes is not None:
        np.save(temporary / "boxes.npy", data.boxes)
    _point(temporary, cell, data)
    write_json(temporary / "cell.json", note)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _image_id(source: manifest.Manifest, row: int) -> str:
    """Return an image's path as it is on every machine: inside its source."""
    path, root = Path(source.names[row]), source.source.resolve().parent
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.name if path.is_absolute() else source.names[row]


def _same(folder: Path, note: dict[str, Any]) -> None:
    found = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    other = sorted(key for key in found.keys() | note.keys() if found.get(key) != note.get(key))
    if other:
        raise InputError(f"{folder} holds a run with another {', '.join(other)}; choose another OUT or label")


def _point(folder: Path, cell: Cell, data: Dataset) -> None:
    """Say where pixels or features are; the grid's folder may have moved since."""
    pool: dict[str, Any] = {"cache": str(data.cache(cell.config.image_size).resolve()), "previous": None}
    pool |= {"image_size": cell.config.image_size, "data": str(data.folder.resolve())}
    if data.bank is not None:
        pool["bank"] = str(data.bank.folder.resolve())
    write_json(folder / "pool.json", pool)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; waits while another process is on the same cell."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_cell(folder: Path, listen: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run or resume a prepared cell and write its results; a failure of the learner is written down, not raised.

    Raises:
        StoppedError: SIGTERM came; everything so far is saved.
    """
    with locked(folder / ".lock"):
        if (folder / "results.json").exists():
            return
        try:
            _run(folder, listen)
        except StoppedError:
            raise
        except LearnerError as error:
            write_json(folder / "failed.json", {"message": str(error)})
            return
        (folder / "failed.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        for weights in folder.glob("best-*.safetensors"):
            weights.unlink()


def _run(folder: Path, listen: Callable[[dict[str, Any]], None] | None) -> None:
    note = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    data = Path(json.loads((folder / "pool.json").read_text(encoding="utf-8"))["data"])
    truth: Rows = np.load(data / "truth.npy", allow_pickle=False)
    with np.load(data / "evaluation.npz", allow_pickle=False) as file:
        selection, kept_out = file["selection"], file["kept_out"]
    classes = load_view(folder / "view.npz").classes
    watcher = Watcher(folder, truth, selection, classes, note["validate_every"])
    out = run_round(folder, listen, [watcher])
    write_json(folder / "results.json", results(folder, out, note, truth, kept_out, classes))


def results(
    folder: Path, out: Path, note: dict[str, Any], truth: Rows, kept_out: Rows, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Gather what a finished run found: the last averaged model first, everything else beside it."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    rows, probs = np.load(out / "rows.npy"), np.load(out / "probs.npy")
    log = read_log(folder)
    spent = sum(record.get("seconds", 0.0) for record in log)
    steps, seconds = metrics["steps"], max(metrics["seconds"] - spent, 1e-9)
    config = RunConfig.load(folder / "config.json")
    return note | {
        "classes": list(classes),
        "last": measured(evaluate(probs, truth[rows], classes)),
        "best_on_val": best_on_val(folder, rows, probs, truth, kept_out, classes, log),
        "validation": [{"step": record["step"], **record["val"]} for record in log if "val" in record],
        "pseudo": pseudo_quality(log, classes),
        "pseudo_at_end": pseudo_quality(log, classes, FINAL_SHARE),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(record.get("cpu", 0.0) for record in log), 2),
        "steps_per_second": round(steps / seconds, 3),
        "validation_seconds": round(spent, 2),
        "logs": metrics["logs"],
        "notes": metrics.get("notes", []),
        "machine": machine(config),
    }


def measured(found: Evaluation) -> dict[str, Any]:
    """Add to an evaluation the balanced accuracy without the rarest classes."""
    recall = {name: value for name, value in found.recall.items() if value is not None and name not in RARE}
    return found.as_dict() | {"balanced_without_rare": float(np.mean(list(recall.values()))) if recall else None}


def best_on_val(
    folder: Path,
    rows: Rows,
    probs: np.ndarray[Any, np.dtype[np.float32]],
    truth: Rows,
    kept_out: Rows,
    classes: tuple[str, ...],
    log: list[dict[str, Any]],
) -> dict[str, Any] | None:
    """Evaluate the model that was best on the selection, on images that neither selected it nor copy one that did.

    `last_there` is the last model on the same images. None where no weights were kept or no image is left.
    """
    validated = [record for record in log if "val" in record]
    kept = {int(path.stem.removeprefix("best-")): path for path in folder.glob("best-*.safetensors")}
    rest = ~np.isin(rows, kept_out)
    if not validated or not kept or not rest.any():
        return None
    best = max(validated, key=lambda record: (record["val"]["balanced"], -record["step"]))["step"]
    path = kept.get(best)
    if path is None:
        return None
    model = snapshot.load(folder / "out")
    checkpoint.load_weights(model.network, read_weights(path), str(path))
    files = RunFiles.read(folder)
    device = make_fabric(model.config).device
    source = make_source(files.data.faces, model.config, device)
    predictor = Predictor(model.network.to(device), model.recipe, source, device, model.config.predict_batch)
    found = evaluate(predictor.predict(rows[rest]).probs, truth[rows[rest]], classes)
    last = evaluate(probs[rest], truth[rows[rest]], classes)
    return {
        "step": best,
        "balanced": found.balanced,
        "overall": found.overall,
        "num": found.num,
        "last_there": {"balanced": last.balanced, "overall": last.overall},
    }


def machine(config: RunConfig) -> dict[str, Any]:
    """Say what the run was made on."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": config.threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
    }
