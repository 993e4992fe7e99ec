"""What people said, as arrays: the labels of groups on their way into learners."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.loop.fast import Supervision
from annotator.records import LABEL_STATES, Label, LabelRow

UNLABELED, LABELED, PARTIAL, DISPUTED, UNUSABLE = range(5)
assert LABEL_STATES == ("unlabeled", "labeled", "partial", "disputed", "unusable")


@dataclass(frozen=True, slots=True)
class LabelArrays:
    """Labels aligned by position, ascending by row.

    rows (L,) int64; state (L,) int8, index into LABEL_STATES; allowed (L, K) bool, what is still possible; soft (L, K)
    float32, shares of a disputed label, else zeros; given (L,) int64 the one class or -1; locked (L,) bool; num_people
    (L,) int64; stamp (L,) int64.
    """

    rows: NDArray[np.int64]
    state: NDArray[np.int8]
    allowed: NDArray[np.bool_]
    soft: NDArray[np.float32]
    given: NDArray[np.int64]
    locked: NDArray[np.bool_]
    num_people: NDArray[np.int64]
    stamp: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, where: NDArray[np.bool_]) -> "LabelArrays":
        """Return the part at `where` (L,)."""
        return LabelArrays(
            self.rows[where],
            self.state[where],
            self.allowed[where],
            self.soft[where],
            self.given[where],
            self.locked[where],
            self.num_people[where],
            self.stamp[where],
        )

    @property
    def trainable(self) -> NDArray[np.bool_]:
        """Labels (L,) that say something about the classes: one, several, or shares; not unusable ones."""
        says = self.allowed.any(axis=1) & ~self.allowed.all(axis=1)
        shares = (self.state == DISPUTED) & self.soft.any(axis=1)
        return np.asarray((np.isin(self.state, (LABELED, PARTIAL)) & says) | shares, dtype=bool)

    def supervision(self) -> Supervision:
        """Return the same for the fast learner; call it on `take(trainable)`."""
        is_soft = self.state == DISPUTED
        allowed = self.allowed | is_soft[:, None]
        return Supervision(self.rows, allowed, self.soft, is_soft, np.ones(len(self), dtype=np.float32))

    def targets(self) -> NDArray[np.float32]:
        """Return a distribution per label (L, K): one-hot, uniform on a candidate set, or vote shares."""
        uniform = self.allowed / np.maximum(1, self.allowed.sum(axis=1, keepdims=True))
        return np.where((self.state == DISPUTED)[:, None], self.soft, uniform).astype(np.float32)


def arrays(labels: Iterable[LabelRow], classes: Sequence[str]) -> LabelArrays:
    """Turn label rows into arrays; classes that the taxonomy does not know (any more) are left out."""
    book = LabelBook(classes)
    for item in labels:
        book.put(item.row, item.label)
    return book.arrays()


@dataclass(frozen=True, slots=True)
class _Encoded:
    state: int
    mask: int
    soft: tuple[float, ...] | None
    locked: bool
    num_people: int
    stamp: int


class LabelBook:
    """All labels by row, kept between refreshes so that an answer costs one entry."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._place = {slug: k for k, slug in enumerate(self.classes)}
        self._entries: dict[int, _Encoded] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, row: int, label: Label) -> None:
        """Take over the label of a group; an unlabeled one is dropped."""
        if label.state == "unlabeled":
            self._entries.pop(row, None)
            return
        mask = sum(1 << self._place[slug] for slug in label.classes if slug in self._place)
        self._entries[row] = _Encoded(
            LABEL_STATES.index(label.state), mask, self._shares(label), label.locked, label.num_annotators, label.seq
        )

    def _shares(self, label: Label) -> tuple[float, ...] | None:
        if label.state != "disputed":
            return None
        shares = [label.soft.get(slug, 0.0) for slug in self.classes]
        total = sum(shares)
        return tuple(s / total for s in shares) if total > 0 else None

    def arrays(self) -> LabelArrays:
        """Return everything as arrays."""
        rows = np.array(sorted(self._entries), dtype=np.int64)
        entries = [self._entries[row] for row in rows.tolist()]
        count, k = len(rows), len(self.classes)
        masks = np.array([e.mask for e in entries], dtype=np.int64).reshape(count)
        allowed = (masks[:, None] >> np.arange(k)) & 1 == 1
        soft = np.zeros((count, k), dtype=np.float32)
        for i, entry in enumerate(entries):
            if entry.soft is not None:
                soft[i] = entry.soft
        state = np.array([e.state for e in entries], dtype=np.int8).reshape(count)
        single = (state == LABELED) & (allowed.sum(axis=1) == 1)
        return LabelArrays(
            rows,
            state,
            allowed,
            soft,
            np.where(single, allowed.argmax(axis=1), -1) if count else np.zeros(0, dtype=np.int64),
            np.array([e.locked for e in entries], dtype=bool).reshape(count),
            np.array([e.num_people for e in entries], dtype=np.int64).reshape(count),
            np.array([e.stamp for e in entries], dtype=np.int64).reshape(count),
        )
