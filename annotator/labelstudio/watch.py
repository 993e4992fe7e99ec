"""`annotator sync WS labelstudio watch`: both sides are kept equal until a signal to stop arrives.

A cycle asks the server one cheap question when nothing has happened on either side. A webhook shortens the wait and is
believed in nothing else.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from annotator.errors import RefusedError, UnreachableError, WorkspaceError
from annotator.labelstudio.answers.sync import sync_once
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.report import SyncReport
from annotator.labelstudio.tasks.due import PushMemory
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.tasks.versions import Versions
from annotator.labelstudio.wake import Wake
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

log = logging.getLogger(__name__)

CYCLE_SECONDS = 5.0
FULL_SECONDS = 600.0
"""How often the ids of both sides are compared: what was deleted there without a webhook shows in nothing else."""
SEND_SECONDS = 30.0
"""How long a long outbox may keep the next pull waiting; the server takes about twenty answers a second."""
LOOK_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
_LOCKED_OUT = (401, 403)


class Watch:
    """The loop around `sync_once` and `push`.

    Args:
        workspace: the workspace.
        store: its open store.
        server: the linked server.
        cycle_seconds: the wait between two looks while nothing wakes it.
        told: called with a sentence whenever there is news.
    """

    def __init__(
        self,
        workspace: Workspace,
        store: LabelStore,
        server: Server,
        *,
        cycle_seconds: float = CYCLE_SECONDS,
        told: Callable[[str], None] = log.info,
    ) -> None:
        self._workspace, self._store, self._server = workspace, store, server
        self._cycle_seconds = cycle_seconds
        self._told = told
        self._report = SyncReport(workspace)
        self._wake = Wake(workspace)
        self._memory = PushMemory()
        self._full_wanted, self._full_at = True, time.monotonic()
        self._pause = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Go round until `stopping` is set or the project is unlinked.

        Raises:
            RefusedError: the key is not accepted any more: waiting would not help.
        """
        try:
            while not stopping.is_set():
                link = self._store.exchange.link()
                if link is None:
                    self._told("the project was unlinked; nothing is left to watch")
                    return
                self._go_round(link)
                self._wait(stopping)
        finally:
            self._report.say("off")

    def _go_round(self, link: Link) -> None:
        try:
            self.cycle(link)
        except UnreachableError as error:
            self._step_back(f"Label Studio does not answer: {error}")
        except WorkspaceError as error:  # a full disk, a database that is being restarted
            self._step_back(str(error))
        except RefusedError as error:
            if error.status in _LOCKED_OUT:
                raise
            self._step_back(f"Label Studio refused a request: {error}")
        else:
            self._pause = 0.0
            self._report.say("watching", synced=True)

    def cycle(self, link: Link) -> None:
        """Bring both sides together once."""
        self._full_wanted |= self._wake.take().full or time.monotonic() - self._full_at >= FULL_SECONDS
        parts = self._workspace, self._store, self._server, link
        news = sync_once(*parts, full=self._full_wanted, seconds=SEND_SECONDS)
        if self._full_wanted:
            self._full_wanted, self._full_at = False, time.monotonic()
            Versions(self._store.exchange, self._server, link).sweep()
        if news:
            self._told(news.summary())
        if self._memory.due(self._store, link):
            self._report.say("syncing")
            pushed = push(*parts, memory=self._memory)
            if pushed:
                self._told(pushed.summary())

    def _step_back(self, message: str) -> None:
        """Wait longer after every failure."""
        self._pause = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause))
        self._report.say("waiting", message)
        self._told(f"{message}; next try in {self._pause:.0f} s")

    def _wait(self, stopping: threading.Event) -> None:
        # A little more or less by chance: the watches of a lab do not come back to its server in step.
        pause = self._pause * random.uniform(0.8, 1.2) if self._pause else self._cycle_seconds
        until = time.monotonic() + pause
        while time.monotonic() < until and not stopping.wait(LOOK_SECONDS):
            if not self._pause and self._wake.waiting():
                return
