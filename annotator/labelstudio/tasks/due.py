"""Whether a watch should push, told cheaply from the store alone."""

from dataclasses import dataclass

from annotator.labelstudio.tasks.refresh import version_due
from annotator.labelstudio.tasks.withdraw import ERASE
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

FILL_BELOW = 0.8
"""The share of `top_k` below which a watch fills up: every filling renews the predictions of all open tasks."""
_TOUCHED = 1_000


def top_k(link: Link) -> int:
    """Return how many tasks are kept open in the project."""
    return int(link.settings.get("top_k", 1000))


@dataclass(slots=True)
class PushMemory:
    """What a watch remembers of its last push: what was known then, and whether the queue had no more faces (`dry`).

    looked: up to this annotation nobody has answered a face whose task is open.
    """

    looked: int = 0
    seq: int = 0
    generation: int | None = None
    size: int = 0
    dry: bool = False

    def note(self, seq: int, generation: int | None, size: int, *, dry: bool) -> None:
        """Learn up to which annotation, generation and row a push has looked."""
        self.looked = self.seq = seq
        self.generation, self.size, self.dry = generation, size, dry

    def due(self, store: LabelStore, link: Link) -> bool:
        """Tell whether there is a reason: too few open tasks, a new snapshot, something to take back or to erase.

        Where the last push found no more faces, the next waits until something has happened.
        """
        exchange = store.exchange
        if exchange.tasks(link.id, limit=1, states=ERASE) or version_due(store, link):
            return True
        num_open, _ = exchange.open_mark(link.id)
        if num_open < FILL_BELOW * top_k(link) and not self._still_dry(store):
            return True
        return self._may_be_decided(store, link)

    def _may_be_decided(self, store: LabelStore, link: Link) -> bool:
        exchange, seq = store.exchange, store.last_seq()
        touched = exchange.touched_rows(link.id, self.looked, seq, _TOUCHED) if seq != self.looked else {}
        of_rows = exchange.tasks_of_rows(link.id, touched)
        if len(touched) == _TOUCHED or any(task.state == "open" for tasks in of_rows.values() for task in tasks):
            return True
        self.looked = seq
        return False

    def _still_dry(self, store: LabelStore) -> bool:
        current = store.learning.current_generation()
        same = (store.last_seq(), current.id if current else None) == (self.seq, self.generation)
        return self.dry and same and not len(store.images.table(self.size).rows)
