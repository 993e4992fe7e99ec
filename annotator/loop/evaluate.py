"""`annotator evaluate`: the serving fast learner and each method's newest snapshot against the truth of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.chains import current
from annotator.errors import InputError, NotFoundError
from annotator.features import FeatureShards, unit
from annotator.loop.embed import PixelShards
from annotator.loop.fast import FastLearner
from annotator.loop.labels import arrays
from annotator.records import Split
from annotator.settings import Workspace
from annotator.store import LabelStore
from learner.evaluate import Evaluation, evaluate

Progress = Callable[[int, int, str], None]
BATCH = 1024
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Accuracy on a split by model; `left_out` counts leaks: copies of faces that are in the pool."""

    split: str
    faces: int
    left_out: int
    models: dict[str, Evaluation]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        models = {name: result.as_dict() for name, result in self.models.items()}
        return {"split": self.split, "faces": self.faces, "left_out": self.left_out, "models": models}

    def summary(self) -> str:
        """Say it in a few lines."""
        head = f"{self.split}: {self.faces} faces, {self.left_out} left out because the pool holds copies of them"
        lines = [
            f"{name}: overall {r.overall:.3f}, balanced {r.balanced:.3f}, log-loss {r.log_loss:.3f}, ece {r.ece:.3f}"
            for name, r in self.models.items()
        ]
        return "\n".join([head, *(lines or ["no model yet: label faces while a learner runs"])])


def evaluate_split(
    workspace: Workspace, store: LabelStore, split: str, progress: Progress | None = None
) -> SplitReport:
    """Measure the models that there are on the given labels of "val" or "test". Nothing is selected by it.

    Raises:
        InputError: another split, or one without given labels.
    """
    place: dict[str, Split] = {"val": "val", "test": "test"}
    if split not in place:
        raise InputError(f"split {split!r}: choose val or test")
    classes = workspace.settings.taxonomy.slugs
    pixels = PixelShards(workspace.folder("cache") / str(workspace.settings.learner.image_size))
    known = [(t.row, classes.index(t.truth)) for t in store.images.truth(place[split]) if t.truth in classes]
    rows = np.array([row for row, _ in known], dtype=np.int64)
    truth = np.array([k for _, k in known], dtype=np.int64)
    cached = pixels.has(rows)
    rows, truth = rows[cached], truth[cached]
    if not len(rows):
        raise InputError(f"split {split!r} holds no face with a given label; import one with --labels-as truth")
    models: dict[str, Evaluation] = {}
    fast = _fast(workspace, store, rows)
    if fast is not None:
        models[fast[0]] = evaluate(fast[1], truth, classes)
    there = [s for s in store.learning.snapshots() if (workspace.folder("snapshots") / s.id).is_dir()]
    for newest in current(there, workspace.settings.learner.methods):
        probs = _snapshot(workspace.folder("snapshots") / newest.id, pixels.folder, rows, classes, progress)
        models[f"snapshot {newest.id}"] = evaluate(probs, truth, classes)
    table = store.images.table()
    code = {"val": 1, "test": 2}[split]
    left_out = int(((table.split == code) & (table.state == 2)).sum())
    return SplitReport(split, len(rows), left_out, models)


def _fast(workspace: Workspace, store: LabelStore, rows: Rows) -> tuple[str, NDArray[np.float32]] | None:
    """Fit the fast learner to all labels on the serving features and read `rows` with it."""
    generation = store.learning.current_generation()
    if generation is None or not generation.encoder:
        return None
    try:
        shards = FeatureShards(workspace.folder("encoders") / generation.encoder)
    except NotFoundError:
        return None
    _, view = store.decisions.label_view()
    labels = arrays(view, workspace.settings.taxonomy.slugs)
    labels = labels.take(labels.trainable)
    features = unit(shards.read(labels.rows))
    seen = np.asarray(features.any(axis=1), dtype=bool)
    if not seen.any():
        return None
    learner = FastLearner(len(workspace.settings.taxonomy.slugs))
    model = learner.refresh(features[seen], labels.take(seen).supervision())
    return f"fast learner on {generation.encoder}", model.predict(unit(shards.read(rows)))


def _snapshot(
    folder: Path, cache: Path, rows: Rows, classes: tuple[str, ...], progress: Progress | None
) -> NDArray[np.float32]:
    from learner.data import PixelCache
    from learner.snapshot import load

    loaded = load(folder)
    predictor = loaded.predictor(PixelCache(cache, loaded.config.image_size))
    parts = []
    for start in range(0, len(rows), BATCH):
        parts.append(predictor.predict(rows[start : start + BATCH]).probs)
        if progress is not None:
            progress(min(start + BATCH, len(rows)), len(rows), "reading faces")
    probs = np.concatenate(parts)
    order = [loaded.classes.index(slug) if slug in loaded.classes else -1 for slug in classes]
    padded = np.concatenate([probs, np.zeros((len(probs), 1), dtype=np.float32)], axis=1)
    return padded[:, order]
