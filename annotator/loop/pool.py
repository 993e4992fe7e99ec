"""The pool and its labels as the learner follows them: one small read per answer, a full one when much has changed."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.loop.labels import LabelArrays, LabelBook
from annotator.records import ARMS, Annotation, Arm
from annotator.store import LabelStore
from annotator.store.images import PoolTable

MANY = 400
LATELY = 40
"""So many answers back the mix of the arms is balanced: long enough for a share of 5 %, short enough to forget."""
"""With more new answers than this, reading every label is faster than reading theirs."""
ROWS_SECONDS = 1.0
RELOAD_SECONDS = 30.0
_POOL, _VAL, _TEST = 0, 1, 2
_ACTIVE = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What has happened: people's new answers, whether the order should be made anew at once, or soon."""

    answers: tuple[Annotation, ...]
    urgent: bool
    any: bool


class PoolFollower:
    """What there is to ask and what has been answered, as of `seq`."""

    def __init__(self, store: LabelStore, classes: tuple[str, ...]) -> None:
        self._store = store
        self._book = LabelBook(classes)
        self.seq = -1
        self.table = store.images.table()
        self.grew_at = float("-inf")
        self._looked_at = self._reloaded_at = time.monotonic()
        self.lately: deque[Arm] = deque(maxlen=LATELY)
        self._index()

    def _index(self) -> None:
        table = self.table
        active = table.state == _ACTIVE
        represents = (table.split == _POOL) & active & (table.rows == table.group)
        self.rows: NDArray[np.int64] = table.rows[represents]
        self._reserved = set(table.rows[table.reserved].tolist())
        self.group_of: dict[int, int] = dict(zip(table.rows.tolist(), table.group.tolist(), strict=True))

    def catch_up(self) -> "Change":
        """Take over what has happened since the last call."""
        grown = self._look_for_rows()
        seq = self._store.last_seq()
        if seq == self.seq:
            return Change((), False, grown)
        new = self._store.decisions.list(after_seq=self.seq, limit=MANY + 1) if self.seq >= 0 else []
        if self.seq < 0 or len(new) > MANY:
            self._read_all()
            change = Change((), self.seq < 0, True)
        else:
            self._read_labels_of(new)
            people = tuple(a for a in new if a.user_id is not None)
            change = Change(people, bool(people), True)
        self.seq = seq
        return change

    def _look_for_rows(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at < ROWS_SECONDS:
            return False
        self._looked_at = now
        last = int(self.table.rows[-1]) + 1 if len(self.table.rows) else 0
        new = self._store.images.table(since_row=last)
        if not len(new.rows) and now - self._reloaded_at < RELOAD_SECONDS:
            return False
        if len(new.rows):
            self.grew_at = now
        # Copies found later change the state and group of rows that were there: read all of them again.
        self._reloaded_at = now
        table = self._store.images.table()
        changed = not _same(table, self.table)
        self.table = table
        if changed:
            self._index()
        return changed

    def _read_all(self) -> None:
        self._book = LabelBook(self._book.classes)
        for item in self._store.decisions.labels():
            self._book.put(item.row, item.label)
        self._remember(reversed(self._store.decisions.list(newest=True, limit=LATELY)))

    def _read_labels_of(self, new: list[Annotation]) -> None:
        for row in {a.row for a in new}:
            group = self.group_of.get(row, row)
            self._book.put(group, self._store.decisions.label(row))
        self._remember(new)
        for a in new:
            if a.blind and a.arm == "random":
                self._reserved.add(self.group_of.get(a.row, a.row))

    def _remember(self, answers: Iterable[Annotation]) -> None:
        self.lately.extend(arm for a in answers if a.kind != "undo" for arm in ARMS if arm == a.arm)

    def labels(self) -> LabelArrays:
        """Return the labels of active pool groups, those of reserved faces included."""
        everything = self._book.arrays()
        return everything.take(np.isin(everything.rows, self.rows, assume_unique=True))

    def reserved(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which rows (n,) are kept for validation: never trained on."""
        return np.isin(rows, np.array(sorted(self._reserved), dtype=np.int64))

    def split_rows(self, split: str) -> NDArray[np.int64]:
        """Return the active rows of "val" or "test", ascending."""
        code = {"val": _VAL, "test": _TEST}[split]
        return np.asarray(self.table.rows[(self.table.split == code) & (self.table.state == _ACTIVE)], dtype=np.int64)


def _same(a: PoolTable, b: PoolTable) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rows", "group", "split", "state", "reserved")
    )
