"""Keep the queue current: newer scores, new faces, answers written elsewhere, all in one background thread."""

import logging
import threading
import time
from datetime import UTC, datetime

from annotator.errors import AnnotatorError, NotFoundError
from annotator.queue_state import QueueState
from annotator.scores import ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.writer import DecisionWriter

log = logging.getLogger(__name__)

POLL_SECONDS = 0.15
NEW_ROWS_SECONDS = 1.0
PEOPLE_SECONDS = 3.0
ELSEWHERE_SECONDS = 2.0
_PAGE = 5_000


class QueueFollower:
    """Feed a queue from the store and the `scores/` folder.

    Args:
        store: the open store.
        workspace: where the scores are.
        queue: the queue to keep current.
        writer: tells the queue at once what this process writes; None where it writes no answers.
    """

    def __init__(
        self, store: LabelStore, workspace: Workspace, queue: QueueState, writer: DecisionWriter | None = None
    ) -> None:
        self._store = store
        self._scores = workspace.root / "scores"
        self._queue = queue
        self._generation: int | None = None
        self._due_rows = 0.0
        self._due_people = 0.0
        self._due_elsewhere = 0.0
        self._elsewhere: tuple[int, int] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-follower", daemon=True)
        if writer is not None:
            writer.listeners.append(queue.noted)

    def start(self) -> None:
        """Read everything once, then go on in the background."""
        self.read_all()
        self._thread.start()

    def read_all(self) -> None:
        """Read everything once, in the thread of the caller."""
        self._read_new_rows()
        self._queue.load(self._store.activity.since(0))
        self._queue.restore(self._store.leases.active(datetime.now(UTC)))
        self.poll()
        self._queue.count_remaining()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> None:
        """Look once for everything that is due."""
        now = time.monotonic()
        self._read_answers()
        if now >= self._due_rows:
            self._due_rows = now + NEW_ROWS_SECONDS
            self._read_new_rows()
            self._queue.count_remaining()
        if now >= self._due_people:
            self._due_people = now + PEOPLE_SECONDS
            self._queue.know_people(self._store.accounts.list())
        if now >= self._due_elsewhere:
            self._due_elsewhere = now + ELSEWHERE_SECONDS
            self._read_elsewhere()
        self._read_scores()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self.poll()
            except AnnotatorError as error:
                log.warning("the queue goes on with what it has: %s", error)
            except Exception:
                # One bad look must not end the thread: the queue would silently go stale.
                log.exception("the queue goes on with what it has")

    def _read_answers(self) -> None:
        last = self._store.last_seq()
        self._queue.saw(last)
        while self._queue.book.seq < last:
            deeds = self._store.activity.since(self._queue.book.seq, _PAGE)
            self._queue.follow(deeds, None if len(deeds) == _PAGE else last)

    def _read_new_rows(self) -> None:
        if self._queue.states_stale:
            # Something was erased or quarantined by another process: look at everything, once.
            table = self._store.images.table()
            self._queue.refresh_states(table, self._store.activity.labeled_by_import())
        since = self._queue.size
        table = self._store.images.table(since)
        if len(table.rows):
            self._queue.add_images(table, self._store.activity.labeled_by_import(since))

    def _read_elsewhere(self) -> None:
        mark = self._store.exchange.open_mark()
        if mark != self._elsewhere:
            self._queue.put_elsewhere(self._store.exchange.open_rows())
            self._elsewhere = mark

    def _read_scores(self) -> None:
        generation = self._store.learning.current_generation()
        if generation is None or generation.id == self._generation:
            return
        try:
            scores = ScoresReader.load(self._scores / str(generation.id))
        except NotFoundError:
            # Pruned between the look and the read: the next look finds its successor.
            return
        self._read_new_rows()
        self._queue.swap(scores)
        self._generation = generation.id
