"""Who has seen which face: the people's answers as masks by row, followed from the store's log."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from annotator.consensus import COUNTING
from annotator.store.activity import Deed


class AnswerBook:
    """What people have said about which face, in memory. Not thread-safe: the queue's lock guards it.

    `answered_seq` (R,) int64 by representative row: `seq` of the last answer that stands, 0 where nobody answered.
    """

    def __init__(self) -> None:
        self.answered_seq: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._own: dict[int, NDArray[np.bool_]] = {}
        self._put_off: dict[int, dict[int, int]] = {}
        self._skipped: dict[int, NDArray[np.bool_]] = {}
        self._applied: set[int] = set()
        self.seq = 0

    def grow(self, size: int) -> None:
        """Make room for rows below `size`."""
        missing = size - len(self.answered_seq)
        if missing <= 0:
            return
        self.answered_seq = np.concatenate([self.answered_seq, np.zeros(missing, dtype=np.int64)])
        for masks in (self._own, self._skipped):
            for user_id, mask in masks.items():
                masks[user_id] = np.concatenate([mask, np.zeros(missing, dtype=bool)])

    def own(self, user_id: int) -> NDArray[np.bool_]:
        """Return (R,) bool: the faces that a user has answered."""
        return self._mask(self._own, user_id)

    def skipped(self, user_id: int) -> NDArray[np.bool_]:
        """Return (R,) bool: the faces that a user has put off (skipped or flagged) and not answered since."""
        return self._mask(self._skipped, user_id)

    def put_off(self, user_id: int) -> list[int]:
        """Return the faces that a user has put off, the one longest ago first."""
        groups = self._put_off.get(user_id, {})
        return sorted(groups, key=lambda group: groups[group])

    def load(self, deeds: list[Deed]) -> None:
        """Take in the whole log."""
        self._apply(_standing(deeds))
        self.seq = deeds[-1].seq if deeds else 0

    def follow(self, deeds: list[Deed], upto: int | None) -> set[int]:
        """Apply rows from the log; return the groups that must be read anew with `recount`.

        `upto`: the log holds nothing else up to this `seq` (imports are in between); None when there may be more.
        """
        news = [deed for deed in deeds if deed.seq not in self._applied]
        self.seq = max(self.seq, upto or 0, deeds[-1].seq if deeds else 0)
        self._applied = {seq for seq in self._applied if seq > self.seq}
        return self._note(news)

    def note(self, deed: Deed) -> set[int]:
        """Apply one row that this process has just written; return the groups to `recount`."""
        self._applied.add(deed.seq)
        return self._note([deed])

    def recount(self, group: int, deeds: list[Deed]) -> None:
        """Derive everything about one face anew from all its rows: something was undone or corrected."""
        self.answered_seq[group] = 0
        for masks in (self._own, self._skipped):
            for mask in masks.values():
                mask[group] = False
        for groups in self._put_off.values():
            groups.pop(group, None)
        self._apply(_standing(deeds))

    def _note(self, deeds: list[Deed]) -> set[int]:
        self._apply([deed for deed in deeds if deed.supersedes is None])
        return {deed.group for deed in deeds if deed.supersedes is not None}

    def _apply(self, deeds: Iterable[Deed]) -> None:
        for deed in deeds:
            group, user_id = deed.group, deed.user_id
            if group >= len(self.answered_seq):
                self.grow(group + 1)
            if deed.kind in COUNTING:
                self.answered_seq[group] = max(deed.seq, int(self.answered_seq[group]))
                self.own(user_id)[group] = True
                self.skipped(user_id)[group] = False
                self._put_off.get(user_id, {}).pop(group, None)
            else:
                self.skipped(user_id)[group] = True
                self._put_off.setdefault(user_id, {})[group] = deed.seq

    def _mask(self, masks: dict[int, NDArray[np.bool_]], user_id: int) -> NDArray[np.bool_]:
        mask = masks.get(user_id)
        if mask is None:
            mask = masks[user_id] = np.zeros(len(self.answered_seq), dtype=bool)
        return mask


def _standing(deeds: list[Deed]) -> list[Deed]:
    """Return the rows that are neither undone nor superseded, in commit order (as `consensus.effective`)."""
    undone = {deed.supersedes for deed in deeds if deed.kind == "undo"}
    replaced = {deed.supersedes for deed in deeds if deed.kind != "undo" and deed.id not in undone}
    return [d for d in deeds if d.kind != "undo" and d.id not in undone and d.id not in replaced]
