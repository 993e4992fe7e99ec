"""What the last training run says against labels: LION's ambiguous ones (ALGORITHMS.md 6.2, 12)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import WorkspaceError
from annotator.loop.labels import LabelArrays


@dataclass(frozen=True, slots=True)
class Signals:
    """Labels that a snapshot calls ambiguous, ascending by row.

    rows (A,) int64; margin (A,) float64, p_max - p_y in [0, 1]; given (A,) int64, the label it judged; sets (A,) int64,
    bit masks of its candidate sets.
    """

    snapshot_id: str
    label_seq: int
    rows: NDArray[np.int64]
    margin: NDArray[np.float64]
    given: NDArray[np.int64]
    sets: NDArray[np.int64]

    def doubt(self, labels: LabelArrays) -> NDArray[np.float64]:
        """Return the margin (L,) of labels that are doubted and still what the snapshot saw, else NaN."""
        at, found = self._find(labels.rows)
        doubt = np.full(len(labels), np.nan)
        same = found & (labels.stamp <= self.label_seq)
        same[found] &= labels.given[found] == self.given[at[found]]
        doubt[same] = self.margin[at[same]]
        return doubt

    def candidates(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the candidate sets (n,) of doubted rows as bit masks, 0 for others."""
        at, found = self._find(rows)
        masks = np.zeros(len(rows), dtype=np.int64)
        masks[found] = self.sets[at[found]]
        return masks

    def _find(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        at = np.searchsorted(self.rows, rows)
        if not len(self.rows):
            return at, np.zeros(len(rows), dtype=bool)
        found = self.rows[np.minimum(at, len(self.rows) - 1)] == rows
        return at, np.asarray(found & (at < len(self.rows)), dtype=bool)


def load(folder: Path, snapshot_id: str, label_seq: int) -> Signals | None:
    """Read the doubts of a snapshot; None when its method has none (only LION does).

    Raises:
        WorkspaceError: `signals.parquet` or `view.npz` cannot be read.
    """
    needed = ["row", "lion_ambiguous_margin", "lion_label_margin"]
    path = folder / "signals.parquet"
    if not path.is_file() or not (folder / "view.npz").is_file():
        return None
    try:
        names = pq.read_schema(path).names
        if any(name not in names for name in needed):
            return None
        with_sets = [*needed, "lion_candidates"] if "lion_candidates" in names else needed
        table = pq.read_table(path, columns=with_sets)
        with np.load(folder / "view.npz", allow_pickle=False) as view:
            judged = dict(zip(view["rows"].tolist(), view["given"].tolist(), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise WorkspaceError(f"{folder} is damaged ({error}); retrain to make a new snapshot") from error
    columns = {name: table.column(name).to_pylist() for name in with_sets}
    sets = columns.get("lion_candidates") or [0] * table.num_rows
    doubted = [
        (int(row), float(margin), int(judged[row]), int(mask or 0))
        for row, ambiguous, margin, mask in zip(
            columns["row"], columns["lion_ambiguous_margin"], columns["lion_label_margin"], sets, strict=True
        )
        if ambiguous and margin is not None and np.isfinite(margin) and judged.get(row, -1) >= 0
    ]
    doubted.sort()
    rows, margins, given, masks = zip(*doubted, strict=True) if doubted else ((), (), (), ())
    return Signals(
        snapshot_id,
        label_seq,
        np.array(rows, dtype=np.int64),
        np.array(margins, dtype=np.float64),
        np.array(given, dtype=np.int64),
        np.array(masks, dtype=np.int64),
    )
