"""One thread that writes decisions and leases: many answers share one durable commit.

A commit on SQLite ends with an fsync, so twenty people would queue behind twenty of them. Here the answers that arrive
while one commit is under way go together into the next; each is acknowledged only after its commit is durable. Leases
pass through the same thread, so inside the server nobody ever waits for SQLite's write lock.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from annotator.errors import AnnotatorError, OverloadedError
from annotator.records import Answer, Lease, Stored, User
from annotator.store import LabelStore

log = logging.getLogger(__name__)

BATCH = 64
CAPACITY = 2_000


@dataclass(slots=True)
class _Submission:
    user: User
    answer: Answer
    future: "Future[Stored]"


@dataclass(slots=True)
class _LeaseWrite:
    leases: Sequence[Lease]
    future: "Future[None]"


@dataclass(slots=True)
class _Call:
    work: Callable[[], Any]
    future: "Future[Any]"


_Operation = _Submission | _LeaseWrite | _Call


class DecisionWriter:
    """Write answers, undos and leases in one thread, in groups.

    Args:
        store: the open store.
        capacity: writes that may wait; one more is refused, so that a stuck disk cannot fill the memory.
        batch: answers that share one commit at most.

    `listeners` are called in the writer's thread with every newly stored annotation, before it is acknowledged.
    """

    def __init__(self, store: LabelStore, *, capacity: int = CAPACITY, batch: int = BATCH) -> None:
        self._store = store
        self._waiting: queue.Queue[_Operation | None] = queue.Queue(capacity)
        self._batch = batch
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="decision-writer", daemon=True)
        self.listeners: list[Callable[[Stored], None]] = []

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Refuse new writes, finish those that wait, end the thread."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def submit(self, user: User, answer: Answer) -> "Future[Stored]":
        """Store an answer; the future is done once it is durable.

        Raises:
            OverloadedError: too many writes wait, or the server is stopping: nothing was stored.
        """
        future: Future[Stored] = Future()
        self._enqueue(_Submission(user, answer, future))
        return future

    def undo(self, user: User, client_id: str, annotation_id: int) -> "Future[Stored]":
        """Take back an answer, in order with the others."""

        def work() -> Stored:
            stored = self._store.decisions.undo(user, client_id, annotation_id)
            self._tell(stored)
            return stored

        return self.call(work)

    def open_leases(self, leases: Sequence[Lease]) -> "Future[None]":
        """Persist leases; those that wait together share one transaction."""
        future: Future[None] = Future()
        self._enqueue(_LeaseWrite(leases, future))
        return future

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        """Run any other short write in the writer's thread."""
        future: Future[Any] = Future()
        self._enqueue(_Call(work, future))
        return future

    @property
    def waiting(self) -> int:
        """How many writes wait now."""
        return self._waiting.qsize()

    def _enqueue(self, operation: _Operation) -> None:
        with self._gate:
            if self._closed:
                raise OverloadedError("the server is stopping; nothing was stored, send it again in a moment")
            try:
                self._waiting.put_nowait(operation)
            except queue.Full:
                raise OverloadedError(
                    f"{self._waiting.maxsize} answers wait to be written; nothing was stored, send it again in a moment"
                ) from None

    def _run(self) -> None:
        stopping = False
        while not stopping:
            operations: list[_Operation] = []
            item = self._waiting.get()
            while True:
                if item is None:
                    stopping = True
                    break
                operations.append(item)
                if len(operations) >= self._batch:
                    break
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
            self._write([o for o in operations if o.future.set_running_or_notify_cancel()])

    def _write(self, operations: list[_Operation]) -> None:
        """Write one group. Leases go first: they are cheap, and no answer depends on one that still waits."""
        leases = [o for o in operations if isinstance(o, _LeaseWrite)]
        answers = [o for o in operations if isinstance(o, _Submission)]
        if leases:
            self._guarded(leases, lambda: self._write_leases(leases))
        if answers:
            self._guarded(answers, lambda: self._write_answers(answers))
        for call in (o for o in operations if isinstance(o, _Call)):
            self._guarded([call], lambda call=call: call.future.set_result(call.work()))  # type: ignore[misc]

    def _write_leases(self, group: list[_LeaseWrite]) -> None:
        self._store.leases.open([lease for one in group for lease in one.leases])
        for one in group:
            one.future.set_result(None)

    def _write_answers(self, group: list[_Submission]) -> None:
        outcomes = self._store.decisions.submit_many([(one.user, one.answer) for one in group])
        for outcome in outcomes:
            if isinstance(outcome, Stored) and outcome.created:
                self._tell(outcome)
        for one, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Stored):
                one.future.set_result(outcome)
            else:
                one.future.set_exception(outcome)

    def _tell(self, stored: Stored) -> None:
        for listener in self.listeners:
            try:
                listener(stored)
            except Exception:
                # The answer is durable: whatever a listener does must not turn it into an error for the person.
                log.exception("a listener failed on annotation %d", stored.annotation.id)

    @staticmethod
    def _guarded(group: Sequence[_Operation], work: Callable[[], None]) -> None:
        """Hand any failure to those who wait for it; the thread itself goes on."""
        try:
            work()
        except AnnotatorError as error:
            DecisionWriter._fail(group, error)
        except Exception as error:
            log.exception("a write of %d operations failed", len(group))
            DecisionWriter._fail(group, error)

    @staticmethod
    def _fail(group: Sequence[_Operation], error: Exception) -> None:
        for one in group:
            if not one.future.done():
                one.future.set_exception(error)
