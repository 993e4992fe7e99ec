"""What the queue knows: the order, who holds what, who has answered what. It learns; `annotator.queue` hands out."""

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from annotator.answered import AnswerBook
from annotator.holdings import Holdings
from annotator.order import FaceOrder
from annotator.pool import KnownPool
from annotator.records import Lease, Stored, User
from annotator.scores import Scores
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.activity import Deed
from annotator.store.images import PoolTable


class QueueState:
    """Everything in memory behind `FaceQueue`, and how it is kept current; thread-safe.

    Args:
        store: the open store.
        workspace: its settings.
        clock: the time, UTC.
    """

    def __init__(
        self, store: LabelStore, workspace: Workspace, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._settings = workspace.settings.queue
        self._taxonomy = workspace.settings.taxonomy
        self._clock = clock
        self._lock = threading.RLock()
        self._pool = KnownPool()
        self._holdings = Holdings()
        self._scores: Scores | None = None
        self._order = FaceOrder.build(None, self._pool.askable)
        self._head = 0
        self._people: list[User] = []
        self._active_at: dict[int, datetime] = {}
        self._last_seq = 0
        self._remaining = 0
        self.book = AnswerBook()
        self.states_stale = False

    def noted(self, stored: Stored) -> None:
        """Learn of an annotation that this process has written (the writer calls it)."""
        annotation = stored.annotation
        self.saw(annotation.seq)
        with self._lock:
            if annotation.user_id is None:
                return
            lease = self._holdings.get(annotation.lease_id)
            if lease is not None and lease.user_id == annotation.user_id and not annotation.mismatch:
                self._holdings.close(lease.id)
            self._active_at[annotation.user_id] = self._clock()
            deed = Deed(
                annotation.id,
                annotation.seq,
                self._pool.group(annotation.row),
                annotation.user_id,
                annotation.kind,
                annotation.supersedes,
            )
            stale = self.book.note(deed)
        self.recount(stale)

    def saw(self, seq: int) -> None:
        """Learn how far the store's annotations go."""
        self._last_seq = max(self._last_seq, seq)

    def follow(self, deeds: list[Deed], upto: int | None) -> None:
        """Apply answers that may have been written elsewhere; with `upto`, they are all there are up to that `seq`."""
        with self._lock:
            stale = self.book.follow(deeds, upto)
        self.recount(stale)

    def recount(self, groups: Iterable[int]) -> None:
        """Read anew everything about faces of which an answer was undone or corrected."""
        for group in groups:
            deeds = self._store.activity.of_group(group)
            with self._lock:
                self.book.recount(group, deeds)
                self._head = 0

    def add_images(self, table: PoolTable, labeled: list[int]) -> None:
        """Append newly imported faces behind the order."""
        with self._lock:
            self._pool.extend(table, labeled)
            self.book.grow(self._pool.size)
            self._holdings.grow(self._pool.size)
            self._order = FaceOrder.build(self._scores, self._pool.askable)

    def refresh_states(self, table: PoolTable, labeled: list[int]) -> None:
        """Learn anew which faces are usable and which stand for their groups; `table` holds every sample."""
        self.states_stale = False
        with self._lock:
            self._pool.refresh(table, labeled)
            self.book.grow(self._pool.size)
            self._holdings.grow(self._pool.size)
            self._order = FaceOrder.build(self._scores, self._pool.askable)
            self._head = 0

    def swap(self, scores: Scores) -> None:
        """Replace the order by a newer one, as a whole."""
        order = FaceOrder.build(scores, self._pool.askable)
        with self._lock:
            known = order.rows < self._pool.size
            self._scores = scores
            self._order = order if known.all() else FaceOrder.build(scores, self._pool.askable)
            self._head = 0

    def load(self, deeds: list[Deed]) -> None:
        """Take in everything that people have done so far."""
        with self._lock:
            self.book.load(deeds)
        self.saw(self.book.seq)

    def restore(self, leases: Sequence[Lease]) -> None:
        """Take up the leases that were open when the server stopped."""
        with self._lock:
            for lease in leases:
                if lease.row < self._pool.size:
                    self._holdings.open(lease)

    def know_people(self, people: Sequence[User]) -> None:
        """Learn who could give a second opinion."""
        self._people = list(people)

    def put_elsewhere(self, rows: NDArray[np.int64]) -> None:
        """Learn which faces are asked in a linked labeling tool: they are offered here when nothing else is left."""
        with self._lock:
            self._pool.put_elsewhere(rows)

    def count_remaining(self) -> None:
        """Count the faces that are left to ask; too slow for every request, so it is done now and then."""
        with self._lock:
            order = self._order
            self._remaining = int((~self._over(order.rows, order.review)).sum())

    @property
    def order(self) -> FaceOrder:
        """The order as it stands; it is never changed, only replaced as a whole."""
        return self._order

    @property
    def size(self) -> int:
        """One more than the highest row that the queue knows."""
        return self._pool.size

    def _over(self, rows: NDArray[np.int64], review: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which items have nothing left to ask: answered, or, for a review, answered since the order was made."""
        seq = self.book.answered_seq[rows]
        over: NDArray[np.bool_] = np.where(review, seq > self._order.label_seq, seq > 0) | self._pool.gone[rows]
        return over
