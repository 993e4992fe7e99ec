"""Many rows in commits that are short enough for an answer to slip in between."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection

from annotator.store.database import Database

WANTED_SECONDS = 0.01
_SMALLEST, _LARGEST = 5, 5_000
T = TypeVar("T")


class Pace:
    """How many items fit into a commit with `WANTED_SECONDS` of work, learned from those before. One writer each."""

    def __init__(self, size: int = 50) -> None:
        self.size = size

    @contextmanager
    def commit(self, database: Database, count: int) -> Iterator[Connection]:
        """Open a write transaction of `count` items and learn from the time of its statements.

        Waiting for other writers and for the disk is left out: a slow disk must not make the batches small.
        """
        with database.write() as connection:
            began = time.perf_counter()
            yield connection
            self.took(count, time.perf_counter() - began)

    def took(self, count: int, seconds: float) -> None:
        """Learn that a commit of `count` items took so long. Shrinks at once, grows by half at most."""
        if count <= 0 or (count < self.size and seconds < WANTED_SECONDS):
            return
        fits = int(count * WANTED_SECONDS / max(seconds, 1e-6))
        self.size = max(_SMALLEST, min(_LARGEST, fits, self.size + self.size // 2 + 1))


class Paced:
    """Base of what writes long lists piece by piece, each kind of write at a pace of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paces: dict[str, Pace] = defaultdict(Pace)

    def _in_short_commits(
        self, what: str, items: Sequence[T], write: Callable[[Connection, Sequence[T]], object]
    ) -> None:
        """Call `write` with `items` piece by piece, each in a transaction of its own."""
        pace, start = self._paces[what], 0
        while start < len(items):
            batch = items[start : start + pace.size]
            with pace.commit(self._database, len(batch)) as connection:
                write(connection, batch)
            start += len(batch)
