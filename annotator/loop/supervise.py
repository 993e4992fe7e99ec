"""`annotator up`: the page, the learner and the sync as processes, each started again when it dies."""

import json
import logging
import signal
import subprocess
import threading
import time
from types import FrameType

from annotator.errors import InputError, WorkspaceError
from annotator.labelstudio.api.credentials import api_key
from annotator.loop.processes import start_child, stop_child
from annotator.settings import Workspace
from annotator.store import LabelStore

log = logging.getLogger(__name__)

REFUSED = 2
"""Exit code of a child whose settings or workspace are wrong: starting it again would not help."""
STEADY_SECONDS = 30.0
"""A child that lived this long starts again at once; one that dies sooner waits longer every time."""
MAX_PAUSE_SECONDS = 10.0
GRACE_SECONDS = 15.0
REFUSED_PAUSE_SECONDS = 60.0
"""When a child that others can do without is tried again after it has refused to run."""


class _Worker:
    """One supervised child. Labeling goes on without one that is not `needed`, whatever it refuses."""

    def __init__(self, name: str, arguments: list[str], nice: int, *, needed: bool = True) -> None:
        self.name = name
        self._arguments = arguments
        self._nice = nice
        self._needed = needed
        self._pause = 0.0
        self._due = 0.0
        self._started = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def tend(self) -> int | None:
        """Start the child when it is due; return its exit code when it has refused to run."""
        if self._child is None:
            if time.monotonic() >= self._due:
                self._child = start_child(["-m", "annotator", *self._arguments], nice=self._nice)
                self._started = time.monotonic()
                self.starts += 1
            return None
        code = self._child.poll()
        if code is None:
            return None
        self._child = None
        if code == REFUSED:
            self._due = time.monotonic() + REFUSED_PAUSE_SECONDS
            return code if self._needed else None
        steady = time.monotonic() - self._started >= STEADY_SECONDS
        self._pause = 0.0 if steady else min(MAX_PAUSE_SECONDS, max(0.25, self._pause * 2))
        self._due = time.monotonic() + self._pause
        log.warning("%s ended with code %s; starting it again in %.2f s", self.name, code, self._pause)
        return None

    def start_next_with(self, arguments: list[str]) -> None:
        """Give the child other arguments the next time it is started."""
        self._arguments = arguments

    def stop(self) -> None:
        """End the child and wait for it."""
        if self._child is not None:
            stop_child(self._child, GRACE_SECONDS)
            self._child = None


def supervise(workspace: Workspace, host: str | None, port: int | None) -> None:
    """Run the page, the learner and the sync until a signal to stop arrives.

    Raises:
        WorkspaceError: a child refused to run (another server holds the workspace or the port, a wrong setting).
    """
    root = str(workspace.root)
    serve = ["serve", root, *(["--host", host] if host is not None else [])]
    page = _Worker("the page", [*serve, *(["--port", str(port)] if port is not None else [])], nice=0)
    workers = [page, _Worker("the learner", ["learn", root], nice=10), *_sync(workspace)]
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    announced = False
    began = time.time()
    try:
        while not stopping.is_set():
            for worker in workers:
                if worker.tend() is not None:
                    raise WorkspaceError(f"{worker.name} could not start on {root}; its message is above")
            if not announced and (port := _announce(workspace, began)) is not None:
                announced = True
                # People's pages keep asking where they found it: a free port taken once is taken again.
                page.start_next_with([*serve, "--port", str(port)])
            stopping.wait(0.1)
    finally:
        for worker in workers:
            worker.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sync(workspace: Workspace) -> list[_Worker]:
    """Return the sync of a workspace that is linked to a project, if there is a key for it."""
    with LabelStore.open(workspace) as store:
        link = store.exchange.link()
    if link is None:
        return []
    try:
        api_key(link.url)
    except InputError as error:
        log.warning("answers do not go to and from Label Studio: %s", error)
        return []
    watch = ["sync", str(workspace.root), "labelstudio", "watch"]
    return [_Worker("the sync with Label Studio", watch, nice=5, needed=False)]


def _announce(workspace: Workspace, began: float) -> int | None:
    """Print the page's address once the server has written it and return its port; a killed server's does not count."""
    path = workspace.root / "server.json"
    if not path.is_file() or path.stat().st_mtime < began:
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    print(f"label at http://{data['host']}:{data['port']}/", flush=True)  # noqa: T201
    return int(data["port"])
