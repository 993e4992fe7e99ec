"""What our queue would ask next, and what became of what was asked: the order of the queue without a web server."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from annotator.follow import QueueFollower
from annotator.order import FaceOrder
from annotator.queue_state import QueueState
from annotator.records import Arm, ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Shown

UNREAD = "unread"
"""The version of predictions where no model has read the faces yet: they only carry the order."""
LAST = 1.0
"""The priority of a face that is not in the order any more."""
_READ_AGAIN = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """One face to ask for, and what whoever answers it sees.

    model_version: the generation that put it where it is, None for a face that none has read. priority: its place in
    the order as a number in [0, 1), the lowest comes first. confidence: the highest class probability, 1 where no model
    has read it. asked_at: seq of the last annotation that was known when it was chosen.
    """

    image: ImageRecord
    arm: Arm
    reason: str
    candidates: tuple[dict[str, object], ...]
    blind: bool
    model_version: str | None
    priority: float
    confidence: float
    asked_at: int

    @property
    def row(self) -> int:
        """The row of the face."""
        return self.image.row

    @property
    def shown(self) -> Shown:
        """What a lease would say."""
        return Shown(self.arm, self.model_version, self.blind, self.candidates)


class QueueView(QueueState):
    """The queue of a workspace as it stands at one moment, read from the store and the scores."""

    @classmethod
    def read(cls, workspace: Workspace, store: LabelStore) -> Self:
        """Read everything: answers, leases, the order of the current generation.

        Raises:
            WorkspaceError: the current generation is damaged.
        """
        view = cls(store, workspace)
        view.states_stale = True  # read the states of all faces, too: a server hears of them as they are handed out
        follower = QueueFollower(store, workspace, view)
        follower.read_all()
        for _ in range(_READ_AGAIN):  # a generation may be pruned while it is read: then there is a newer one
            current = store.learning.current_generation()
            if current is None or current.model_version == view.order.model_version:
                break
            follower.poll()
        return view

    @property
    def version(self) -> str:
        """The model version of predictions made from this view."""
        return self.order.model_version or UNREAD

    def top(
        self, count: int, leave_out: "NDArray[np.int64] | Sequence[int]" = (), people: Collection[int] = ()
    ) -> list[int]:
        """Return the rows of the first faces that are open and that nobody holds, in the order of the queue.

        Args:
            count: at most this many.
            leave_out: rows that are not wanted.
            people: ids of those who would be asked. What all of them have put off, or have answered themselves when it
                is a review and somebody else could do it, is left out.
        """
        order = self.order
        out = np.zeros(self.size, dtype=bool)
        out[np.asarray(leave_out, dtype=np.int64)] = True
        free = ~(self._over(order.rows, order.review) | self._holdings.held[order.rows] | out[order.rows])
        free &= order.review | self._askable()[order.rows]  # an import may have brought labels since the order was made
        if people:
            free &= ~self._all_of(self.book.skipped, people)[order.rows]
            if self._others(people):
                free &= ~(order.review & self._all_of(self.book.own, people)[order.rows])
        return [int(row) for row in order.rows[np.flatnonzero(free)[: max(count, 0)]]]

    def tell(self, rows: Sequence[int]) -> list[Wanted]:
        """Return what is said of faces, answered or not; those that are not in the order or unusable are left out."""
        places = np.full(self.size, -1, dtype=np.int64)
        places[self.order.rows] = np.arange(len(self.order.rows))
        found = places[np.asarray(rows, dtype=np.int64)]
        positions = found[found >= 0].tolist()
        images = self._store.images.by_rows([int(self.order.rows[position]) for position in positions])
        pairs = zip(positions, images, strict=True)
        return [self._wanted(self.order, position, image) for position, image in pairs if image.state == "active"]

    def gone(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """Tell which faces cannot be asked for any more: quarantined, erased, or of another split."""
        return np.asarray(self._pool.gone[np.asarray(rows, dtype=np.int64)])

    def answered_since(self, rows: Sequence[int], seqs: Sequence[int]) -> NDArray[np.bool_]:
        """Tell which faces people answered, them or a copy of them, after the annotation `seq` given for each."""
        groups = np.array([self._pool.group(row) for row in rows], dtype=np.int64)
        return np.asarray(self.book.answered_seq[groups] > np.asarray(seqs, dtype=np.int64))

    def settled(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """Tell which faces have a label, by people or an import, that the order does not ask to review."""
        groups = np.array([self._pool.group(row) for row in rows], dtype=np.int64)
        doubted = np.zeros(self.size, dtype=bool)
        doubted[self.order.rows[self.order.review]] = True
        labeled = (self.book.answered_seq > 0) | ~self._askable()
        return np.asarray((labeled & ~doubted)[groups])

    def _askable(self) -> NDArray[np.bool_]:
        """Return (R,) bool: the faces that came without a label of their own."""
        askable = np.zeros(self.size, dtype=bool)
        askable[self._pool.askable] = True
        return askable

    def _all_of(self, mask_of: Callable[[int], NDArray[np.bool_]], people: Collection[int]) -> NDArray[np.bool_]:
        return np.asarray(np.logical_and.reduce([mask_of(user_id) for user_id in people]), dtype=np.bool_)

    def _others(self, people: Collection[int]) -> bool:
        return any(p.id not in people and not p.disabled and not p.simulated for p in self._people)

    def _wanted(self, order: FaceOrder, position: int, image: ImageRecord) -> Wanted:
        # What colleagues said is for reviewers alone: a second opinion is independent of the first.
        show_given = not self.book.answered_seq[image.row]
        return Wanted(
            image=image,
            arm=order.arm(position),
            reason=order.explain(position, self._taxonomy, show_given=show_given).sentence,
            candidates=order.candidates(position),
            blind=order.blind(position),
            model_version=order.model_version_of(position),
            priority=order.priority(position),
            confidence=order.confidence(position),
            asked_at=self.book.seq,
        )
