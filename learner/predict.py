"""Features, probabilities and per-image signals of any rows, by the averaged model in eval mode (ALGORITHMS.md 12)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.models import Network, run
from learner.parts import LabelView, Recipe, Scores
from learner.sources import Source

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Views = Literal["none", "strong", "weak+strong"]
READINGS: dict[Views, tuple[str, ...]] = {"none": (), "strong": ("s",), "weak+strong": ("w", "s")}


@dataclass(frozen=True, slots=True)
class Predictions:
    """Aligned with rows (N,): features (N,d) float16, probs (N,K) float32, and the augmented readings (N,K) or None.

    columns: what the recipe's readers found, (N,) or (N,n) each.
    """

    rows: Rows
    features: NDArray[np.float16]
    probs: Floats
    weak: Floats | None = None
    strong: Floats | None = None
    columns: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)


class Predictor:
    """Reads faces by row with a network that it puts into eval mode; draws for the two views come from `step`."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        source: Source,
        device: torch.device,
        batch: int | None,
        step: int = 0,
    ) -> None:
        self.network = network.eval()
        self.recipe = recipe
        self.source = source
        self.batch = batch or (64 if device.type == "cpu" else 512)
        self.step = step

    @torch.inference_mode()
    def predict(self, rows: Rows, views: Views = "none", on_batch: Callable[[int], None] | None = None) -> Predictions:
        """Read `rows` (N,) in batches; `views` adds a strong or a weak and a strong reading.

        `on_batch` hears how many rows are done and may raise to stop.

        Raises:
            PixelsMissingError: a row is not in the cache.
        """
        num, width = len(rows), self.network.feature_dim
        num_classes = self.network.head.out_features
        features = np.empty((num, width), np.float16)
        readings = {name: np.empty((num, num_classes), np.float32) for name in (*READINGS[views], "x")}
        found: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, num, self.batch):
            part = rows[start : start + self.batch]
            here = slice(start, start + len(part))
            strong: Scores | None = None
            for name, p in readings.items():  # the clean one last: readers compare it with the strong one
                out = run(self.network, self._view(name, part))
                scores = self.recipe.scorer(out)
                p[here] = scores.p.float().cpu().numpy()
                if name == "s":
                    strong = scores
                elif name == "x":
                    features[here] = out.f.to(torch.float16).cpu().numpy()
                    for reader in self.recipe.readers:
                        for column, values in reader(out, scores, strong).items():
                            found.setdefault(column, []).append(values.cpu().numpy())
            if on_batch is not None:
                on_batch(start + len(part))
        columns = {name: np.concatenate(parts) for name, parts in found.items()}
        return Predictions(rows, features, readings["x"], readings.get("w"), readings.get("s"), columns)

    def _view(self, name: str, rows: Rows) -> Tensor:
        if name == "x":
            return self.source.clean(rows)
        return self.source.view(name, rows, np.full(len(rows), self.step, np.int64))


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Return the Jensen-Shannon divergence of distributions (N,K) as a share of ln 2: (N,) in [0, 1], symmetric."""
    mean = (p.astype(np.float64) + q) / 2

    def divergence(a: Floats) -> NDArray[np.float64]:
        ratio = np.divide(a, mean, out=np.ones_like(mean), where=a > 0)
        total: NDArray[np.float64] = (a * np.log(ratio)).sum(axis=1)
        return total

    share: Floats = np.clip((divergence(p) + divergence(q)) / (2 * np.log(2)), 0, 1).astype(np.float32)
    return share


def generic_columns(predictions: Predictions) -> dict[str, Any]:
    """Make the columns that every method has: p, pred, conf, margin, entropy (as a share of ln K), view_*.

    The view columns compare the strong reading with the weak one, or with the clean one where no weak one was made.
    """
    p = predictions.probs
    ordered = np.sort(p, axis=1)
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1) / np.log(p.shape[1])
    columns: dict[str, Any] = {
        "p": p,
        "pred": p.argmax(axis=1).astype(np.int8),
        "conf": ordered[:, -1],
        "margin": ordered[:, -1] - ordered[:, -2],
        "entropy": np.clip(entropy, 0, 1).astype(np.float32),
    }
    if predictions.strong is not None:
        plain = p if predictions.weak is None else predictions.weak
        columns["view_disagree"] = plain.argmax(axis=1) != predictions.strong.argmax(axis=1)
        columns["view_js"] = jensen_shannon(plain, predictions.strong)
    return columns


def signals_table(
    predictions: Predictions, recipe: Recipe, view: LabelView, round_number: int, step: int, device: torch.device
) -> pa.Table:
    """Join the generic columns with those of the recipe's readers and keepers: one row per image, keyed by `row`."""
    rows = torch.from_numpy(predictions.rows).to(device)
    scores = Scores.of(torch.from_numpy(predictions.probs).to(device))
    scores.columns = {name: torch.from_numpy(values).to(device) for name, values in predictions.columns.items()}
    fields = ("rows", "target", "allowed", "excluded", "given", "locked", "stamp")
    near = dataclasses.replace(view, **{name: getattr(view, name).to(device) for name in fields})
    extra: dict[str, Any] = dict(predictions.columns)
    for keeper in recipe.keepers:
        keeper.reserve(int(predictions.rows.max(initial=-1)) + 1, device)
        extra |= keeper.signals(rows, scores, near)
    return as_table({**generic_columns(predictions), **extra}, predictions.rows, view.classes, round_number, step)


def as_table(columns: dict[str, Any], rows: Rows, classes: tuple[str, ...], round_number: int, step: int) -> pa.Table:
    """Make an Arrow table with `row` first; classes, round and lifetime step are its metadata."""
    table = pa.table({"row": pa.array(rows), **{name: arrow_column(values) for name, values in columns.items()}})
    metadata = {"classes": ",".join(classes), "round": str(round_number), "lifetime_step": str(step)}
    return table.replace_schema_metadata(metadata)


def arrow_column(values: Any) -> pa.Array:
    """Turn (N,) into a column and (N,K) into a column of fixed-size lists."""
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1])
