"""Predictions of the current generation for all that is open in the project, while its order never turns random.

Label Studio orders by the predictions of the project's own model version and falls back to chance when a task has none.
So all open tasks get the new version first; only when it is counted complete the project's version moves, and only then
the older ones are deleted, when nobody is answering (`versions`). A version is never completed bit by bit: after a
crash it is made again under a name of its own, `<version>~2`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from annotator.errors import UnreachableError
from annotator.ingest.cache import Progress
from annotator.labelstudio.api.server import Server, among
from annotator.labelstudio.tasks.predicting import Predictor
from annotator.labelstudio.tasks.sending import in_batches, send
from annotator.labelstudio.tasks.versions import Versions
from annotator.labelstudio.tasks.wanted import LAST, QueueView, Wanted
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown, TaskState

log = logging.getLogger(__name__)

BATCH = 2_000
"""Predictions in one request; the server counts all tasks of the project anew after each."""
_OPEN: tuple[TaskState, ...] = ("open",)
_ROUNDS = 4
_LISTED = 250


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a refresh did. `version`: what the project shows now, None when nothing of ours is open there.

    renewed: tasks with a new prediction. plain: those of them whose suggestion the project's controls cannot say: they
    are only put in order. gone: tasks that somebody has deleted there. left: older versions that could not be deleted.
    """

    version: str | None
    renewed: int = 0
    plain: int = 0
    gone: int = 0
    left: tuple[str, ...] = ()


def base(version: str) -> str:
    """Return the generation's version of a version that was made again."""
    return version.partition("~")[0]


def origin(version: str) -> str:
    """Return what made a version: the snapshot or encoder in front of the generation's number."""
    return version.rpartition(".")[0] or version


def version_due(store: LabelStore, link: Link) -> bool:
    """Tell whether open tasks need newer predictions: a new snapshot or encoder reads the faces, or they have none."""
    generation = store.learning.current_generation()
    if generation is None or not store.exchange.open_mark(link.id)[0]:
        return False
    shown = link.model_version
    return shown is None or origin(base(shown)) != origin(generation.model_version)


def refresh(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    link: Link,
    *,
    view: QueueView | None = None,
    progress: Progress | None = None,
) -> Renewal:
    """Give every open task a prediction of the current generation and let the project show it.

    Nothing is done where the project shows it already for all of them.

    Raises:
        UnreachableError: try later; what is done stays done.
        RefusedError: the server refuses the key, the project or the version.
    """
    return Renewing(workspace, store, server, link, view or QueueView.read(workspace, store), progress).run()


class Renewing:
    """One refresh under way."""

    def __init__(
        self,
        workspace: Workspace,
        store: LabelStore,
        server: Server,
        link: Link,
        view: QueueView,
        progress: Progress | None,
    ) -> None:
        self._exchange, self._server, self._link = store.exchange, server, link
        self._view, self._progress = view, progress
        self._versions = Versions(store.exchange, server, link)
        self._predictor = Predictor(workspace, link)
        self._plain: set[int] = set()
        self._gone: set[int] = set()

    def run(self) -> Renewal:
        """Do what is needed."""
        shown = self._server.project(self._link.project_id).get("model_version") or None
        if self._complete(shown):
            if self._link.model_version != shown:
                self._exchange.update_link(self._link.id, model_version=shown)
            return Renewal(shown, left=tuple(self._versions.tidy(keep=shown)))
        return self._renew(shown) if self._some_open() else self._start_anew()

    def _complete(self, shown: str | None) -> bool:
        """Tell whether the project shows a version of this generation that every open task has."""
        if shown is None or shown not in self._versions.ours() or base(shown) != self._view.version:
            return False
        return self._some_open() and not self._exchange.stale_tasks(self._link.id, shown, 1)

    def _some_open(self) -> bool:
        return bool(self._exchange.tasks(self._link.id, limit=1, states=_OPEN))

    def _start_anew(self) -> Renewal:
        """With nothing open, the first tasks that come bring their version with them, if the project has none."""
        left = self._versions.tidy(keep=None, at_once=True)
        self._exchange.update_link(self._link.id, model_version=None)
        return Renewal(None, left=tuple(left))

    def _renew(self, shown: str | None) -> Renewal:
        version, items = shown or "", dict[int, tuple[LinkedTask, Shown, float]]()
        for _ in range(_ROUNDS):
            version = self.new_version(shown)
            items = self._items()
            if not items:
                return self._start_anew()
            self._import(list(items.values()), version)
            count = self._versions.count(version)
            if count == len(items) - len(self._gone & items.keys()):
                break
            log.info("%d predictions of %s where %d are due: made again", count, version, len(items))
            self._server.delete_model_version(self._link.project_id, version)
        else:
            raise UnreachableError(f"{self._link.url}: the predictions of {version} do not become complete; try later")
        self._server.update_project(self._link.project_id, model_version=version)
        said = [(task_id, shown) for task_id, (_, shown, _) in items.items() if task_id not in self._gone]
        self._exchange.confirm_predictions(self._link.id, said, version)
        self._exchange.update_link(self._link.id, model_version=version)
        left = self._versions.tidy(keep=version)
        return Renewal(version, len(said), len(self._plain), len(self._gone), tuple(left))

    def new_version(self, shown: str | None) -> str:
        """Return a name for a version of this generation that the project does not know."""
        return self._versions.make(self._view.version, shown)

    def _items(self) -> dict[int, tuple[LinkedTask, Shown, float]]:
        """Return every open task with what it shows from now on and its score."""
        tasks: list[LinkedTask] = []
        while True:
            page = self._exchange.tasks(self._link.id, tasks[-1].task_id if tasks else 0, BATCH, _OPEN)
            tasks += page
            if len(page) < BATCH:
                break
        found: dict[int, tuple[LinkedTask, Shown, float]] = {}
        for part in in_batches(tasks, BATCH):
            now = {item.row: item for item in self._view.tell([task.row for task in part])}
            found |= {task.task_id: (task, *self._said(task, now.get(task.row))) for task in part}
        return found

    def _said(self, task: LinkedTask, now: Wanted | None) -> tuple[Shown, float]:
        """Return what a task shows, and its score. What was asked blind stays blind, and nothing else becomes it."""
        was = task.shown or Shown()
        if now is None:
            return Shown(was.arm, self._view.order.model_version, was.blind, ()), LAST
        score = self._predictor.score(now)
        candidates = () if was.blind or now.blind else now.candidates
        return Shown(now.arm, now.model_version, was.blind, candidates), score

    def _import(self, items: Sequence[tuple[LinkedTask, Shown, float]], version: str) -> None:
        done = 0

        def request(part: list[dict[str, Any]]) -> None:
            nonlocal done
            made = self._server.import_predictions(self._link.project_id, part)
            if made != len(part):  # those that do not fit the project's controls are left out without a word
                self._plainly(self._missing(part, version))
            done += len(part)
            if self._progress is not None:
                self._progress(done, len(items), "predictions")

        outcome = send(self._predictions(items, version), request, lambda part: self._missing(part, version))
        for failed, error in (*outcome.refused, *outcome.later):
            raise UnreachableError(f"no prediction for task {failed['task']} of Label Studio: {error}")

    def _predictions(
        self, items: Sequence[tuple[LinkedTask, Shown, float]], version: str
    ) -> Iterator[list[dict[str, Any]]]:
        for part in in_batches(items, BATCH):
            yield [{"task": task.task_id} | self._predictor.say(shown, score, version) for task, shown, score in part]

    def _plainly(self, part: list[dict[str, Any]]) -> None:
        plain = [item | {"result": []} for item in part]
        self._plain |= {int(item["task"]) for item in plain}
        if self._server.import_predictions(self._link.project_id, plain) != len(plain):
            raise UnreachableError(f"{self._link.url}: predictions without a suggestion are left out, too")

    def _missing(self, part: list[dict[str, Any]], version: str) -> list[dict[str, Any]]:
        """Return the predictions whose tasks are there and do not have one; note the tasks that are gone."""
        have: set[int] = set()
        there: set[int] = set()
        for chunk in in_batches([int(item["task"]) for item in part], _LISTED):
            tasks, _ = self._server.tasks(
                self._link.project_id,
                include=("id", "predictions", "model_version"),
                filters=[among(chunk)],
                page_size=len(chunk),
            )
            there |= {int(task["id"]) for task in tasks}
            have |= {
                int(task["id"]) for task in tasks if any(p["model_version"] == version for p in task["predictions"])
            }
        gone = {int(item["task"]) for item in part} - there
        if gone:
            self._gone |= gone
            self._exchange.set_task_state(self._link.id, gone, "gone")
        return [item for item in part if int(item["task"]) in there - have]
