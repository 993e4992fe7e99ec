"""What people did so far, read once and then followed: the source of the Progress and Team pages."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median

from annotator.store import LabelStore
from annotator.store.activity import Moment

ANSWERS = frozenset({"label", "candidates", "not", "unusable"})
"""The kinds that say something about a face; skips, flags and undos do not."""
_BATCH = 20_000


@dataclass(frozen=True, slots=True)
class Person:
    """One annotator's work. `seconds` is the median time on screen of the latest 200 answers, None without any."""

    user_id: int
    answers: int
    today: int
    skips: int
    flags: int
    undone: int
    late: int
    seconds: float | None
    last: datetime


@dataclass(slots=True)
class _Work:
    answers: list[Moment] = field(default_factory=list)
    skips: int = 0
    flags: int = 0
    undone: int = 0
    late: int = 0
    last: datetime | None = None


class History:
    """Follows the annotations of people; thread-safe. Every call reads only what is new."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._moments: list[Moment] = []
        self._undone: set[int] = set()
        self._seq = 0

    def _follow(self) -> None:
        while True:
            fresh = self._store.activity.moments(self._seq, _BATCH)
            for moment in fresh:
                if moment.kind == "undo" and moment.supersedes is not None:
                    self._undone.add(moment.supersedes)
            self._moments += fresh
            if fresh:
                self._seq = fresh[-1].seq
            if len(fresh) < _BATCH:
                return

    def times(self) -> list[datetime]:
        """Return when the answers that stand were given, oldest first. A correction is not a second answer."""
        with self._lock:
            self._follow()
            return [m.created_at for m in self._standing() if m.supersedes is None]

    def people(self, now: datetime) -> list[Person]:
        """Return everyone's work, most answers first; `today` is counted from midnight in the zone of `now`."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        with self._lock:
            self._follow()
            work = self._work()
        found = [
            Person(
                user_id,
                answers=len(one.answers),
                today=sum(m.created_at >= midnight for m in one.answers),
                skips=one.skips,
                flags=one.flags,
                undone=one.undone,
                late=one.late,
                seconds=_median_seconds(one.answers),
                last=one.last or midnight - timedelta(days=1),
            )
            for user_id, one in work.items()
        ]
        return sorted(found, key=lambda person: (-person.answers, person.user_id))

    def _standing(self) -> list[Moment]:
        return [m for m in self._moments if m.kind in ANSWERS and m.id not in self._undone]

    def _work(self) -> dict[int, _Work]:
        work: dict[int, _Work] = defaultdict(_Work)
        for moment in self._moments:
            one = work[moment.user_id]
            one.last = moment.created_at
            one.undone += moment.kind == "undo"
            if moment.id in self._undone:
                continue
            one.skips += moment.kind == "skip"
            one.flags += moment.kind == "flag"
            one.late += moment.late
            if moment.kind in ANSWERS and moment.supersedes is None:
                one.answers.append(moment)
        return work


def _median_seconds(answers: list[Moment], latest: int = 200) -> float | None:
    known = [m.duration_ms for m in answers[-latest:] if m.duration_ms is not None]
    return median(known) / 1000 if known else None
