"""What our server answers as an ML backend: predictions for tasks, from memory; nothing is ever computed here.

How Label Studio 1.23 uses what comes back, with its flag for several versions (`ff_front_dev_1682`) off as shipped:
its uncertainty order takes the lowest score among the predictions of the project's own version, its page shows those
alone, and no answer of a backend moves that version (a project without one takes the backend's title when it is
connected, and no prediction bears that). Each request stores what comes under the version that the answer names, for
every task chosen that has no prediction of the version that `/setup` named just before. So a backend that names its
newest generation fills the project with predictions that nobody sees, again with every generation.

Therefore every answer bears the version that the project shows, whatever has been learned since: the sync brings a
newer one to all tasks before the project's version moves. A task whose prediction is known to be there gets that same
one again. Until the project shows a version of ours, it is that of the current scores.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.labelstudio.tasks.predicting import Predictor
from annotator.labelstudio.tasks.refresh import base
from annotator.labelstudio.tasks.wanted import LAST, UNREAD
from annotator.order import FaceOrder
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown

_NAMED = 5


@dataclass(slots=True)
class Predicted:
    """One answer: `results` has a prediction, or an empty list, for each task asked about.

    left_out: reason to the tasks that got none because of it. To Label Studio an empty list means no prediction: it
    stores nothing, where an empty prediction would be counted and shown as one.
    """

    results: list[dict[str, Any] | list[Any]] = field(default_factory=list)
    left_out: dict[str, list[object]] = field(default_factory=lambda: defaultdict(list))

    def leave_out(self, task_id: object, reason: str) -> None:
        """Answer the next task with no prediction."""
        self.left_out[reason].append(task_id)
        self.results.append([])

    def reasons(self) -> str:
        """Say which tasks got no prediction and why, in one line; empty when every task got one."""
        said = []
        for reason, tasks in self.left_out.items():
            named = ", ".join(str(task)[:20] for task in tasks[:_NAMED])
            more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
            said.append(f"{reason} (task {named}{more})")
        return "; ".join(said)


class Backend:
    """Predictions for the tasks of the linked project; thread-safe.

    Args:
        store: the open store.
        order: returns the order that the queue serves now.
    """

    def __init__(self, store: LabelStore, order: Callable[[], FaceOrder]) -> None:
        self._store = store
        self._order = order
        self._ranked: tuple[FaceOrder, NDArray[np.int64]] | None = None

    def model_version(self, link: Link) -> str:
        """Return the version that all predictions bear."""
        return _version(link, self._order())

    def predict(self, link: Link, project: object, tasks: Sequence[object]) -> Predicted:
        """Return what is known of tasks, as Label Studio wrote them down.

        Args:
            link: the active link.
            project: who asks, `<project id>.<time>`; another project than the linked one gets nothing.
            tasks: of each only its id is read.
        """
        answer = Predicted()
        ids = [_id_of(task) for task in tasks]
        if not _is_linked(project, link):
            for task_id in ids:
                answer.leave_out(task_id, f"not of the linked project {link.project_id}")
            return answer
        known = self._store.exchange.tasks_by_id(link.id, {i for i in ids if i is not None})
        order, places = self._ranks()
        place_of = self._places(places, [task.row for task in known.values()])
        predictor, version = Predictor(self._store.workspace, link), _version(link, order)
        by_confidence = link.settings.get("order") == "confidence"
        for task_id in ids:
            task = known.get(task_id) if task_id is not None else None
            place = place_of[task.row] if task is not None else None
            shown = _shown(task, order, place, version)
            if isinstance(shown, str):
                answer.leave_out(task_id, shown)
                continue
            score = _score(order, place, by_confidence=by_confidence)
            answer.results.append(predictor.say(shown, score, version))
        return answer

    def _ranks(self) -> tuple[FaceOrder, NDArray[np.int64]]:
        """Return the order with the position of every row in it, -1 where a row is not; counted once per order."""
        order, ranked = self._order(), self._ranked
        if ranked is None or ranked[0] is not order:
            places = np.full(int(order.rows.max(initial=-1)) + 1, -1, dtype=np.int64)
            places[order.rows] = np.arange(len(order.rows))
            self._ranked = ranked = (order, places)
        return ranked

    def _places(self, places: NDArray[np.int64], rows: Sequence[int]) -> dict[int, int | None]:
        """Return the position of each row, that of the face it is a copy of if need be, None for a row without one."""
        found = {row: _place(places, row) for row in rows}
        copies = [row for row, place in found.items() if place is None]
        if copies:
            found |= {image.row: _place(places, image.group) for image in self._store.images.by_rows(copies)}
        return found


def _id_of(task: object) -> int | None:
    task_id = task.get("id") if isinstance(task, dict) else None
    return task_id if type(task_id) is int and 0 < task_id < 2**63 else None


def _is_linked(project: object, link: Link) -> bool:
    """Tell whether `<id>.<time>` names the linked project; who names none is believed to ask for it."""
    return project is None or str(project).partition(".")[0] == str(link.project_id)


def _version(link: Link, order: FaceOrder) -> str:
    return link.model_version or order.model_version or UNREAD


def _shown(task: LinkedTask | None, order: FaceOrder, place: int | None, version: str) -> Shown | str:
    """Return what a prediction of `version` shows: what is known to be there, else what the order says; or why not."""
    if task is None:
        return "not a task of this workspace"
    if task.state != "open":
        return f"a task that is {task.state}"
    if task.shown is not None and task.model_version == version:
        return task.shown
    if base(version) != (order.model_version or UNREAD):  # the project shows an older one
        return f"no prediction of {version} is kept for it, the sync brings the next"
    if place is None:
        return Shown()
    # What was asked blind stays blind.
    blind = order.blind(place) or (task.shown is not None and task.shown.blind)
    return Shown(order.arm(place), version, blind, () if blind else order.candidates(place))


def _score(order: FaceOrder, place: int | None, *, by_confidence: bool) -> float:
    if place is None:
        return LAST
    return order.confidence(place) if by_confidence else order.priority(place)


def _place(places: NDArray[np.int64], row: int) -> int | None:
    place = int(places[row]) if row < len(places) else -1
    return place if place >= 0 else None
