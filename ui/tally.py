"""How much each person has done: today, ever, and per minute just now."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from annotator.records import Stored
from annotator.store import LabelStore

_PACE = timedelta(minutes=1)


@dataclass(slots=True)
class _Tally:
    day: datetime
    today: int
    total: int
    recent: deque[datetime]


class Tallies:
    """Counters in memory, read from the store once per person and day; thread-safe."""

    def __init__(self, store: LabelStore, clock: Callable[[], datetime] = lambda: datetime.now().astimezone()) -> None:
        self._activity = store.activity
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: dict[int, _Tally] = {}

    def of(self, user_id: int) -> dict[str, Any]:
        """Return {today, total, per_minute} of a user; `today` begins at the server's midnight."""
        now = self._clock()
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        with self._lock:
            tally = self._tallies.get(user_id)
            if tally is None or tally.day != day:
                today, total = self._activity.counts(user_id, day)
                recent = deque(self._activity.times(user_id, now - _PACE))
                tally = self._tallies[user_id] = _Tally(day, today, total, recent)
            while tally.recent and tally.recent[0] < now - _PACE:
                tally.recent.popleft()
            return {"today": tally.today, "total": tally.total, "per_minute": len(tally.recent)}

    def noted(self, stored: Stored) -> None:
        """Count an annotation that was just written."""
        annotation = stored.annotation
        if annotation.user_id is None:
            return
        with self._lock:
            tally = self._tallies.get(annotation.user_id)
            if tally is None:
                return
            if annotation.kind == "undo":
                # Whether the undone answer counted (today, at all) is the store's to say.
                del self._tallies[annotation.user_id]
                return
            tally.recent.append(annotation.created_at)
            if annotation.supersedes is None:
                tally.today += 1
                tally.total += 1
