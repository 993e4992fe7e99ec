"""What the sync says of itself: `labelstudio.lock` while it lives, `labelstudio.json` for the page and the status."""

import json
import os
from datetime import UTC, datetime
from typing import Any, Literal

from annotator.durable import read_object
from annotator.locks import lock_held
from annotator.settings import Workspace

LOCK = "labelstudio.lock"
REPORT = "labelstudio.json"
SyncState = Literal["watching", "syncing", "waiting", "off"]


class SyncReport:
    """Writes `labelstudio.json`. `synced_at` is when both sides were last seen equal."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / REPORT
        self._synced_at: str | None = read_object(self._path).get("synced_at")

    def say(self, state: SyncState, message: str | None = None, *, synced: bool = False) -> None:
        """Replace the report atomically; `message` holds no secrets."""
        if synced:
            self._synced_at = datetime.now(UTC).isoformat()
        said = {"state": state, "message": message, "synced_at": self._synced_at, "pid": os.getpid()}
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(said), encoding="utf-8")
        temporary.replace(self._path)


def sync_state(workspace: Workspace) -> dict[str, Any]:
    """Return the sync's own report: state (`off` where none runs), message, synced_at (ISO 8601) or None."""
    said = read_object(workspace.root / REPORT)
    state = {"state": "off", "message": None, "synced_at": said.get("synced_at")}
    if lock_held(workspace.root / LOCK):  # one that was killed leaves its last words behind
        state |= {"state": said.get("state", "off"), "message": said.get("message")}
    return state
