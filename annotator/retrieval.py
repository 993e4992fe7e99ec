"""Which labeled faces are near the one on screen, and what is typical of a class: FAISS on unit features."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from annotator.errors import NotFoundError
from annotator.features import F32, FeatureShards, Rows, unit
from annotator.records import LabelRow
from annotator.settings import Workspace
from annotator.store import LabelStore

REFRESH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A labeled face and how near it is: cosine similarity in [-1, 1]."""

    row: int
    label: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Prototype:
    """A class as its faces show it: unit mean direction (d,), the most typical labeled face, how many there are."""

    label: str
    direction: F32
    row: int
    count: int


class LabeledIndex:
    """An exact inner-product index over the unit features of labeled faces."""

    def __init__(self, rows: Rows, labels: Sequence[str], features: F32) -> None:
        """Index faces `rows` (n,) with `labels` (n,) and features (n, d); rows without features are left out."""
        vectors = unit(features)
        known: NDArray[np.bool_] = np.asarray(vectors.any(axis=1), dtype=bool)
        self.rows = rows[known]
        self.labels = [label for label, keep in zip(labels, known.tolist(), strict=True) if keep]
        self._vectors = np.ascontiguousarray(vectors[known])
        self._index = faiss.IndexFlatIP(features.shape[1])
        self._index.add(self._vectors)

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, feature: F32, k: int, exclude: int | None = None) -> list[Neighbour]:
        """Return the `k` faces nearest to a feature (d,), nearest first, without row `exclude`; [] for zeros."""
        query = unit(feature[None])
        if not len(self) or k <= 0 or not query.any():
            return []
        similarity, found = self._index.search(query, min(len(self), k + 1))
        hits = [
            Neighbour(int(self.rows[i]), self.labels[i], float(s))
            for s, i in zip(similarity[0], found[0], strict=True)
            if i >= 0 and self.rows[i] != exclude
        ]
        return hits[:k]

    def prototypes(self) -> dict[str, Prototype]:
        """Return the prototype of every class that has a labeled face with features."""
        names = np.array(self.labels, dtype=object)
        out = {}
        for label in sorted(set(self.labels)):
            members = np.flatnonzero(names == label)
            direction = unit(self._vectors[members].mean(axis=0, keepdims=True))[0]
            typical = members[int(np.argmax(self._vectors[members] @ direction))]
            out[label] = Prototype(label, direction, int(self.rows[typical]), len(members))
        return out


class FaceRetrieval:
    """Neighbours and prototypes of a workspace, kept up to date with its labels and its encoder.

    Call `refresh` before asking: it reads labels again only when there are new ones, and at most every
    `REFRESH_SECONDS`.
    """

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._workspace = workspace
        self._store = store
        self._shards: FeatureShards | None = None
        self._index: LabeledIndex | None = None
        self._state: tuple[str, int, int] | None = None
        self._refreshed = float("-inf")
        self._prototypes: dict[str, Prototype] | None = None

    def refresh(self) -> None:
        """Take over the encoder of the current generation and the labels as they are now."""
        if self._index is not None and time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        generation = self._store.learning.current_generation()
        if generation is None or not generation.encoder:
            return
        if self._shards is None or self._shards.info.id != generation.encoder:
            try:
                self._shards = FeatureShards(self._workspace.folder("encoders") / generation.encoder)
            except NotFoundError:
                return  # replaced a moment ago: the next generation names its successor
        else:
            self._shards.reload()
        state = (self._shards.info.id, self._store.last_seq(), self._shards.stop)
        if state == self._state:
            return
        self._index = _labeled_index(self._shards, self._store.decisions.labels(states={"labeled"}))
        self._prototypes = None
        self._state = state

    def neighbours(self, row: int, k: int = 5, exclude_group: int | None = None) -> list[Neighbour]:
        """Return the labeled faces nearest to `row`, nearest first.

        The face itself and its copies never appear: `exclude_group` is the row of the group's representative (default:
        `row`), the only member that the index holds.
        """
        if self._index is None or self._shards is None:
            return []
        group = row if exclude_group is None else exclude_group
        feature = self._shards.read(np.array([row], dtype=np.int64))[0]
        if not feature.any():
            feature = self._shards.read(np.array([group], dtype=np.int64))[0]
        return self._index.search(feature, k, exclude=group)

    def prototypes(self) -> dict[str, Prototype]:
        """Return the prototype of every class that has labels, by slug."""
        if self._index is None:
            return {}
        if self._prototypes is None:
            self._prototypes = self._index.prototypes()
        return self._prototypes


def _labeled_index(shards: FeatureShards, labels: Sequence[LabelRow]) -> LabeledIndex:
    rows = np.array([item.row for item in labels], dtype=np.int64)
    return LabeledIndex(rows, [item.label.classes[0] for item in labels], shards.read(rows))
