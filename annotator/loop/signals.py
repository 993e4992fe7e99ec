"""What the newest snapshot of each method says of single faces (ALGORITHMS.md 12): doubts about labels, open sets.

A method offers what its columns hold. `lion_ambiguous_margin` and `remop_disagree` put a label up for review, by the
label margin p_max - p_y; `lion_candidates`, `remop_linear`, `remop_feature` and `leaf_set` are classes to suggest.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import WorkspaceError
from annotator.loop.labels import LabelArrays
from annotator.records import Sight, Snapshot

log = logging.getLogger(__name__)

FAR_OUT = 3.0
"""A face whose distance to its class's centre is this many standard deviations above the mean is an outlier."""
MIN_AGREEMENT = 0.5
"""A model that reads fewer of its own training labels as people did cannot speak against any of them."""
Rows = NDArray[np.int64]
Masks = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Doubts:
    """Labels that a snapshot doubts, ascending by row, A of them.

    rows (A,) int64; margin (A,) float64, p_max - p_y in [0, 1]; given (A,) int64, the label it judged; sets (A,) int64,
    bit masks of the classes it holds possible; seen (A,) uint8, bits of `Sight`.
    """

    rows: Rows
    margin: Floats
    given: Rows
    sets: Masks
    seen: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Signals:
    """What one snapshot offers. open_rows (O,) ascending and open_sets (O,): faces with several possible classes."""

    snapshot_id: str
    label_seq: int
    doubts: tuple[Doubts, ...]
    open_rows: Rows
    open_sets: Masks


@dataclass(frozen=True, slots=True)
class Doubted:
    """Aligned with labels (L,): margin, NaN where nothing speaks against the label; classes as masks; what was seen."""

    margin: Floats
    sets: Masks
    seen: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Board:
    """The signals of all methods together."""

    methods: tuple[Signals, ...] = ()

    @property
    def snapshots(self) -> list[str]:
        """The snapshots that have something to say."""
        return [signals.snapshot_id for signals in self.methods]

    def doubted(self, labels: LabelArrays) -> Doubted:
        """Join the doubts about labels that are still what the snapshot saw; the largest margin counts."""
        margin = np.full(len(labels), np.nan)
        sets, seen = np.zeros(len(labels), dtype=np.int64), np.zeros(len(labels), dtype=np.uint8)
        for signals in self.methods:
            for doubts in signals.doubts:
                at, found = _find(doubts.rows, labels.rows)
                stands = found & (labels.stamp <= signals.label_seq)
                stands[found] &= labels.given[found] == doubts.given[at[found]]
                there = at[stands]
                margin[stands] = np.fmax(margin[stands], doubts.margin[there])
                sets[stands] |= doubts.sets[there]
                seen[stands] |= doubts.seen[there]
        return Doubted(margin, sets, seen)

    def open_sets(self, rows: Rows) -> Masks:
        """Return the classes (n,) that stayed possible for rows (n,) as bit masks, 0 where no method says so."""
        masks = np.zeros(len(rows), dtype=np.int64)
        for signals in self.methods:
            at, found = _find(signals.open_rows, rows)
            masks[found] |= signals.open_sets[at[found]]
        return masks


def _find(known: Rows, rows: Rows) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where rows (n,) are in `known`, ascending, and which of them are there at all."""
    at = np.searchsorted(known, rows)
    if not len(known):
        return at, np.zeros(len(rows), dtype=bool)
    at = np.minimum(at, len(known) - 1)
    return at, np.asarray(known[at] == rows, dtype=bool)


def read(folder: Path, newest: Iterable[Snapshot], classes: tuple[str, ...]) -> Board:
    """Read what the snapshots under `folder` say; one that is gone, damaged or of other classes says nothing."""
    found = []
    for snapshot in newest:
        try:
            signals = load(folder / snapshot.id, snapshot.id, snapshot.label_seq, classes)
        except WorkspaceError as error:
            log.warning("%s", error)
            continue
        if signals is not None:
            found.append(signals)
    return Board(tuple(found))


def load(folder: Path, snapshot_id: str, label_seq: int, classes: tuple[str, ...]) -> Signals | None:
    """Read the signals of a snapshot; None when its method offers none that is used here.

    Raises:
        WorkspaceError: `signals.parquet` or `view.npz` cannot be read.
    """
    path = folder / "signals.parquet"
    if not path.is_file() or not (folder / "view.npz").is_file():
        return None
    try:
        schema = pq.read_schema(path)
        told = (schema.metadata or {}).get(b"classes")
        if told is not None and tuple(told.decode().split(",")) != classes:
            return None
        columns = [name for name in _USED if name in schema.names]
        table = pq.read_table(path, columns=["row", *columns]).sort_by("row")
        with np.load(folder / "view.npz", allow_pickle=False) as view:
            judged = _Judged.of(table, view["rows"], view["given"])
        doubts = tuple(d for d in (_lion(judged), _remop(judged)) if d is not None)
        opened = _leaf(table, len(classes))
    except (OSError, ValueError, KeyError, BadZipFile, pa.ArrowException) as error:
        raise WorkspaceError(f"{folder} is damaged ({error}); retrain to make a new snapshot") from error
    if not doubts and opened is None:
        return None
    return Signals(snapshot_id, label_seq, doubts, *(opened or (np.zeros(0, np.int64), np.zeros(0, np.int64))))


_USED = (
    *("p", "lion_ambiguous_margin", "lion_label_margin", "lion_candidates"),
    *("remop_disagree", "remop_linear", "remop_feature", "remop_own_z", "leaf_set", "leaf_m"),
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The rows with one label that a snapshot was trained on: the table's lines of them, and their labels (J,)."""

    table: pa.Table
    rows: Rows
    given: Rows

    @classmethod
    def of(cls, table: pa.Table, rows: Rows, given: Rows) -> "_Judged":
        order = np.argsort(rows)
        rows, given = rows[order], given[order]
        known = _column(table, "row", np.int64)
        at, found = _find(known, rows)
        single = found & (given >= 0)
        return cls(table.take(pa.array(at[single])), rows[single], given[single])

    def has(self, *names: str) -> bool:
        return all(name in self.table.column_names for name in names)

    def column(self, name: str, kind: type[Kind]) -> NDArray[Kind]:
        return _column(self.table, name, kind)

    def doubts(self, which: NDArray[np.bool_], margin: Floats, sets: Masks, seen: NDArray[np.uint8]) -> Doubts:
        return Doubts(self.rows[which], margin[which], self.given[which], sets[which], seen[which])


def _column(table: pa.Table, name: str, kind: type[Kind]) -> NDArray[Kind]:
    """Return a column as an array (n,); what is missing is 0, in a float column NaN."""
    column = table.column(name).combine_chunks()
    missing = np.nan if np.issubdtype(kind, np.floating) else np.zeros(1, kind)[0].item()
    values = column.cast(pa.from_numpy_dtype(kind)).fill_null(missing).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=kind)


def _lion(judged: _Judged) -> Doubts | None:
    """Labels that stayed ambiguous by the margin test (6.2), with LION's candidate sets."""
    if not judged.has("lion_ambiguous_margin", "lion_label_margin"):
        return None
    margin = judged.column("lion_label_margin", np.float64)
    which = judged.column("lion_ambiguous_margin", np.bool_) & np.isfinite(margin)
    sets = judged.column("lion_candidates", np.int64) if judged.has("lion_candidates") else np.zeros_like(judged.given)
    return judged.doubts(which, margin, sets, np.full(len(margin), Sight.DOUBT, dtype=np.uint8))


def _remop(judged: _Judged) -> Doubts | None:
    """Labels on faces whose linear and feature readings disagree, or that lie far out and are read differently (7)."""
    if not judged.has("remop_disagree", "p") or not len(judged.rows):
        return None
    lines = judged.table.column("p").combine_chunks()
    probs = np.asarray(lines.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(judged.rows), -1)
    margin = probs.max(axis=1) - probs[np.arange(len(probs)), judged.given]
    if (margin <= 0).mean() < MIN_AGREEMENT:
        return None
    apart = judged.column("remop_disagree", np.bool_)
    far = np.zeros_like(apart)
    if judged.has("remop_own_z"):
        far = judged.column("remop_own_z", np.float64) > FAR_OUT
    sets = np.left_shift(np.int64(1), probs.argmax(axis=1).astype(np.int64))
    for name in ("remop_linear", "remop_feature"):
        if judged.has(name):
            read_as = judged.column(name, np.int64)  # -1 where no class has a center
            sets |= np.where(read_as >= 0, np.left_shift(np.int64(1), np.maximum(read_as, 0)), 0)
    seen = (np.where(apart, Sight.TWO_READINGS, 0) | np.where(far, Sight.OUTLIER, 0)).astype(np.uint8)
    return judged.doubts(apart | (far & (margin > 0)), margin, sets, seen)


def _leaf(table: pa.Table, num_classes: int) -> tuple[Rows, Masks] | None:
    """Faces with two or more possible classes (5.2); a set of more than half of the classes narrows nothing down."""
    if not {"leaf_set", "leaf_m"} <= set(table.column_names):
        return None
    size = _column(table, "leaf_m", np.int64)
    useful = (size >= 2) & (size <= num_classes // 2)
    return _column(table, "row", np.int64)[useful], _column(table, "leaf_set", np.int64)[useful]
