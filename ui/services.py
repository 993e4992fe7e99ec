"""What a running server consists of, made once and shared by all routes."""

import threading
import time
from dataclasses import dataclass
from typing import Any

from annotator.auth import Authenticator
from annotator.follow import QueueFollower
from annotator.labelstudio.backend import Backend
from annotator.labelstudio.wake import Wake
from annotator.queue import FaceQueue
from annotator.settings import Workspace
from annotator.status import learner_state, workspace_status
from annotator.store import LabelStore
from annotator.writer import DecisionWriter
from ui.faces import FaceFiles
from ui.link_auth import LinkAuth
from ui.neighbours import NearestFaces
from ui.tally import Tallies

_LEARNER_SECONDS = 0.2
_STATUS_SECONDS = 2.0


@dataclass(slots=True)
class Services:
    """The parts behind the routes."""

    workspace: Workspace
    store: LabelStore
    auth: Authenticator
    writer: DecisionWriter
    queue: FaceQueue
    follower: QueueFollower
    faces: FaceFiles
    tallies: Tallies
    learner: "LearnerWatch"
    overview: "Overview"
    neighbours: NearestFaces
    link_auth: LinkAuth
    backend: Backend
    wake: Wake
    slugs: tuple[str, ...]

    @classmethod
    def make(cls, workspace: Workspace, store: LabelStore, host: str) -> "Services":
        """Connect the parts; nothing runs before `start`."""
        writer = DecisionWriter(store)
        queue = FaceQueue(store, workspace, writer)
        tallies = Tallies(store)
        follower = QueueFollower(store, workspace, queue, writer)
        writer.listeners.append(tallies.noted)
        return cls(
            workspace=workspace,
            store=store,
            auth=Authenticator(store, workspace, host),
            writer=writer,
            queue=queue,
            follower=follower,
            faces=FaceFiles(workspace, store),
            tallies=tallies,
            learner=LearnerWatch(workspace),
            overview=Overview(workspace, store),
            neighbours=NearestFaces(workspace, store),
            link_auth=LinkAuth(store),
            backend=Backend(store, lambda: queue.order),
            wake=Wake(workspace),
            slugs=workspace.settings.classes,
        )

    def start(self) -> None:
        """Read the store and start the threads."""
        self.writer.start()
        self.follower.start()

    def close(self) -> None:
        """Finish what waits and end the threads."""
        self.follower.close()
        self.writer.close()
        self.faces.close()


class LearnerWatch:
    """The learner's own report, `learner.json`, read at most a few times a second."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._state: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return what the learner does now."""
        with self._lock:
            if time.monotonic() - self._read_at > _LEARNER_SECONDS:
                self._state = learner_state(self._workspace)
                self._read_at = time.monotonic()
            return self._state


class Overview:
    """The whole status, counted at most every other second however many people look at it."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._workspace = workspace
        self._store = store
        self._lock = threading.Lock()
        self._next_count = 0.0
        self._status: dict[str, Any] = {}

    def status(self) -> dict[str, Any]:
        """Return what `annotator status --json` prints."""
        with self._lock:
            started = time.monotonic()
            if started >= self._next_count:
                self._status = workspace_status(self._workspace, self._store)
                now = time.monotonic()
                # A workspace that is slow to count is counted less often.
                self._next_count = now + max(_STATUS_SECONDS, 10 * (now - started))
            return self._status
