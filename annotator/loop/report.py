"""What the learner says of itself: `learner.lock` while it lives, `learner.json` for the page and the status."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from annotator.errors import WorkspaceBusyError
from annotator.settings import Workspace

LearnerState = Literal["idle", "training", "pretraining", "publishing", "off"]
REPEAT_SECONDS = 5.0


@contextlib.contextmanager
def learner_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace's one learner lock; it goes with the process, whatever ends it.

    Raises:
        WorkspaceBusyError: another learner runs on this workspace.
    """
    path = workspace.root / "learner.lock"
    # Never truncated and never deleted: the lock is on the file itself.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            who = f" (process {holder})" if holder else ""
            raise WorkspaceBusyError(f"another learner{who} works on {workspace.root}; stop it first") from error
        os.pwrite(descriptor, f"{os.getpid():<19}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


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
