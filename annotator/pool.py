"""Which rows can be asked for: the representatives of the pool, and the group of every row."""

import numpy as np
from numpy.typing import NDArray

from annotator.errors import NotFoundError
from annotator.store.images import PoolTable

_POOL, _ACTIVE = 0, 0


class KnownPool:
    """The samples that the queue knows. Not thread-safe: the queue's lock guards it.

    `askable` int64 ascending: representatives of active pool groups that came without a label of their own. `gone` (R,)
    bool by row: faces that turned out to be unusable since they were read. `elsewhere` (R,) bool by representative row:
    faces that are asked in a linked labeling tool. `size`: one more than the highest row.
    """

    def __init__(self) -> None:
        self.askable: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.gone: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self.elsewhere: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._rows_elsewhere: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._group_of: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.num_representatives = 0

    @property
    def size(self) -> int:
        """One more than the highest row."""
        return len(self.gone)

    def extend(self, table: PoolTable, labeled: list[int]) -> None:
        """Learn of rows above those known; `labeled` are groups among them that came with a label."""
        if not len(table.rows):
            return
        size = int(table.rows[-1]) + 1
        group_of = np.full(size, -1, dtype=np.int64)
        group_of[: self.size] = self._group_of
        group_of[table.rows] = table.group
        self._group_of = group_of
        self.gone = np.concatenate([self.gone, np.zeros(size - self.size, dtype=bool)])
        self.put_elsewhere(self._rows_elsewhere)
        asked = (table.rows == table.group) & (table.split == _POOL) & (table.state == _ACTIVE)
        self.num_representatives += int(asked.sum())
        fresh = table.rows[asked]
        if labeled:
            fresh = fresh[~np.isin(fresh, np.array(labeled, dtype=np.int64))]
        self.askable = np.concatenate([self.askable, fresh])

    def refresh(self, table: PoolTable, labeled: list[int]) -> None:
        """Learn everything anew: which rows are usable, which stand for their groups. `table` holds every sample."""
        size = self.size
        self.askable = self.askable[:0]
        self._group_of, self.gone = self._group_of[:0], self.gone[:0]
        self.num_representatives = 0
        self.extend(table, labeled)
        if self.size < size:
            raise ValueError(f"a table up to row {self.size} cannot replace one up to row {size}")
        self.gone[table.rows] = (table.split != _POOL) | (table.state != _ACTIVE)

    def put_elsewhere(self, rows: NDArray[np.int64]) -> None:
        """Learn which faces are asked in a linked labeling tool; rows that are not known yet count once they are."""
        self._rows_elsewhere = rows
        groups = self._group_of[rows[rows < self.size]]
        self.elsewhere = np.zeros(self.size, dtype=bool)
        self.elsewhere[groups[groups >= 0]] = True

    def group(self, row: int) -> int:
        """Return the representative row of a row's group.

        Raises:
            NotFoundError: the row is not known yet.
        """
        if not 0 <= row < self.size or self._group_of[row] < 0:
            raise NotFoundError(f"row {row} is not known to the queue yet")
        return int(self._group_of[row])
