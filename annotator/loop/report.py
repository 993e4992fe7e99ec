"""What the learner says of itself: `learner.lock` while it lives, `learner.json` for the page and the status."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

LOCK = "learner.lock"
LearnerState = Literal["idle", "training", "pretraining", "publishing", "off"]
REPEAT_SECONDS = 5.0


class Report:
    """Writes `learner.json` when something has changed, and now and then anyway."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: dict[str, Any] = {}
        self._at = float("-inf")
        self.message: str | None = None

    def say(
        self,
        state: LearnerState,
        *,
        progress: float | None = None,
        eta_s: float | None = None,
        method: str | None = None,
        round_: str | None = None,
        trouble: str | None = None,
    ) -> None:
        """Replace the report atomically. `message` stays until it is replaced, and `trouble` goes before it."""
        said: dict[str, Any] = {
            "state": state,
            "progress": None if progress is None else round(progress, 3),
            "eta_s": eta_s,
            "message": trouble or self.message,
            "method": method,
            "round": round_,
        }
        now = time.monotonic()
        if said == self._said and now - self._at < REPEAT_SECONDS:
            return
        self._said, self._at = said, now
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(
            json.dumps({**said, "pid": os.getpid(), "at": datetime.now(UTC).isoformat()}), encoding="utf-8"
        )
        temporary.replace(self._path)
