"""Taking back tasks that need no answer any more: decided elsewhere, unusable, erased.

A task with an answer is never deleted, and neither is one that the project had before it was linked; except those of
erased faces, which go with all that is said about them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from annotator.consensus import COUNTING
from annotator.face_pictures import FacePictures
from annotator.ingest.cache import Progress
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.tasks.inflight import delete_unanswered
from annotator.labelstudio.tasks.pictures import task_pictures
from annotator.labelstudio.tasks.sending import in_batches
from annotator.labelstudio.tasks.wanted import QueueView
from annotator.records import Annotation
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.decisions import FOREIGN
from annotator.store.exchange_records import Link, LinkedTask, TaskState

_OPEN: tuple[TaskState, ...] = ("open",)
ERASE: tuple[TaskState, ...] = ("erase",)
_PAGE = 1_000
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A task to take back, and why."""

    task_id: int
    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What was taken back. `kept`: tasks that somebody there has answered meanwhile: the next pull brings it."""

    withdrawn: int = 0
    kept: int = 0
    erased: int = 0


def plan_withdraw(store: LabelStore, link: Link, view: QueueView) -> list[Withdrawal]:
    """Return the tasks that need no answer any more, by ascending id; those of erased faces come last."""
    found: list[Withdrawal] = []
    seen: set[int] = set()
    for page in _pages(store, link, _OPEN):
        first: list[LinkedTask] = []
        twice: list[LinkedTask] = []
        for task in page:
            (twice if task.row in seen else first).append(task)
            seen.add(task.row)
        again = [Withdrawal(t.task_id, t.row, "the face is asked in another task, too") for t in _ours(twice)]
        found += sorted([*_decided(store, link, view, _ours(first)), *again], key=lambda item: item.task_id)
    erased = [Withdrawal(task.task_id, task.row, "erased") for page in _pages(store, link, ERASE) for task in page]
    return found + erased


def withdraw(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    link: Link,
    *,
    view: QueueView | None = None,
    progress: Progress | None = None,
) -> Withdrawn:
    """Delete the tasks in Label Studio that need no answer any more.

    Raises:
        UnreachableError: try later; what is done stays done.
        RefusedError: the server refuses the key or the project.
    """
    view = view or QueueView.read(workspace, store)
    erased = _erase(workspace, store, server, link)
    planned = [item.task_id for item in plan_withdraw(store, link, view)]
    withdrawn = kept = 0
    for part in in_batches(planned, _BATCH):
        gone, answered = delete_unanswered(server, link, part)
        store.exchange.set_task_state(link.id, gone, "withdrawn")
        withdrawn, kept = withdrawn + len(gone), kept + len(answered)
        if progress is not None:
            progress(withdrawn + kept, len(planned), "withdrawn")
    return Withdrawn(withdrawn, kept, erased)


def _erase(workspace: Workspace, store: LabelStore, server: Server, link: Link) -> int:
    """Delete the tasks of erased faces with their answers and pictures; return how many."""
    erased = 0
    pictures = None
    for page in _pages(store, link, ERASE):
        for part in in_batches(page, _BATCH):
            pictures = pictures or task_pictures(link, server, FacePictures(workspace, store))
            server.delete_tasks(link.project_id, [task.task_id for task in part])
            images = store.images.by_rows([task.row for task in part])
            pictures.remove({task.picture for task in part if task.picture}, {image.image_id for image in images})
            # Only now: before that a crash would leave the picture there for good.
            cleared = [replace(task, state="withdrawn", picture=None, shown=None) for task in part]
            store.exchange.put_tasks(link.id, cleared)
            erased += len(part)
    return erased


def _pages(store: LabelStore, link: Link, states: tuple[TaskState, ...]) -> Iterator[list[LinkedTask]]:
    after = 0
    while page := store.exchange.tasks(link.id, after, _PAGE, states):
        yield page
        after = page[-1].task_id


def _ours(tasks: Sequence[LinkedTask]) -> list[LinkedTask]:
    """Leave out the tasks that the project had before it was linked: we put no picture there."""
    return [task for task in tasks if task.picture is not None]


def _decided(store: LabelStore, link: Link, view: QueueView, tasks: Sequence[LinkedTask]) -> list[Withdrawal]:
    rows, seqs = [task.row for task in tasks], [task.since_seq for task in tasks]
    gone, answered, settled = view.gone(rows), view.answered_since(rows, seqs), view.settled(rows)
    mapped = {str(name).casefold() for name in link.settings.get("users", {}).values()}
    doubtful = [row for row, n, a, s in zip(rows, gone, answered, settled, strict=True) if not n and (a or s)]
    said = store.exchange.standing(doubtful)
    found = []
    for task, is_gone, is_answered, is_settled in zip(tasks, gone, answered, settled, strict=True):
        reason = None
        if is_gone:
            reason = "the face cannot be used any more"
        elif is_answered:
            reason = _answered(said.get(task.row, ()), task, mapped)
        elif is_settled:
            reason = "the face has a label that nothing doubts"
        if reason is not None:
            found.append(Withdrawal(task.task_id, task.row, reason))
    return found


def _answered(said: Sequence[Annotation], task: LinkedTask, mapped: set[str]) -> str | None:
    """Return who has decided the face, None when that goes out as an answer to the task itself."""
    since = [a for a in said if a.seq > task.since_seq and a.kind in COUNTING]
    if not since or any(a.user_name.casefold() in mapped and a.source != FOREIGN for a in since):
        return None
    return f"answered by {since[-1].user_name}"
