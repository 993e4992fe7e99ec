"""What our server answers as an ML backend: predictions for tasks, from memory; nothing is ever computed here.

How Label Studio 1.23 uses what comes back, with its flag for several versions (`ff_front_dev_1682`) off as shipped:
its uncertainty order takes the lowest score among the predictions of the project's own version, its page shows those
alone, and no answer of a backend moves that version (a project without one takes the backend's title when it is
connected, and no prediction bears that). Each request stores what comes under the version that the answer names, for
every task chosen that has no prediction of the version that `/setup` named just before. So a backend that names its
newest generation fills the project with predictions that nobody sees, again with every generation.

Therefore the version named is the one that the project shows, and a task whose prediction is known to be there gets
that same one again, whatever has been learned since; the sync brings the newer ones to all tasks before the project's
version moves. Only a task without a confirmed prediction gets the current scores, under their own version.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.labelstudio.controls import Mapping
from annotator.labelstudio.results import prediction
from annotator.order import FaceOrder
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown
from annotator.taxonomy import Taxonomy

NOT_OURS = "not a task of this workspace"
_NAMED = 5


@dataclass(slots=True)
class Predicted:
    """One answer: `results` has a prediction, or an empty list, for each task asked about.

    left_out: reason to the tasks that got none because of it. To Label Studio an empty list means no prediction: it
    stores nothing, where an empty prediction would be counted and shown as one.
    """

    results: list[dict[str, Any] | list[Any]] = field(default_factory=list)
    left_out: dict[str, list[object]] = field(default_factory=lambda: defaultdict(list))

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
        self._taxonomy = store.workspace.settings.taxonomy
        self._store = store
        self._order = order
        self._ranked: tuple[FaceOrder, NDArray[np.int64]] | None = None

    def model_version(self, link: Link) -> str | None:
        """Return the version that the project shows; before it shows any, that of the current scores, if any."""
        return link.model_version or self._order().model_version

    def versions(self, link: Link) -> list[str]:
        """Return the versions that predictions may bear now, the one that the project shows first."""
        found = (link.model_version, self._order().model_version)
        return list(dict.fromkeys(version for version in found if version is not None))

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
            answer.left_out[f"not of the linked project {link.project_id}"] = list(ids)
            answer.results = [[] for _ in ids]
            return answer
        known = self._store.exchange.tasks_by_id(link.id, {i for i in ids if i is not None})
        order, places = self._ranks()
        place_of = self._places(places, [task.row for task in known.values()])
        mapping = Mapping.from_dict(link.settings["mapping"])
        say = _Sayer(order, mapping, self._taxonomy, link.settings.get("order") == "confidence")
        for task_id in ids:
            task = known.get(task_id) if task_id is not None else None
            reason = _refused(task, order)
            if task is None or reason is not None:
                answer.left_out[reason or NOT_OURS].append(task_id)
                answer.results.append([])
            else:
                answer.results.append(say.prediction(task, place_of[task.row]))
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


@dataclass(frozen=True, slots=True)
class _Sayer:
    """Puts what is known of a task into a prediction."""

    order: FaceOrder
    mapping: Mapping
    taxonomy: Taxonomy
    by_confidence: bool

    def prediction(self, task: LinkedTask, place: int | None) -> dict[str, Any]:
        shown, version = self._shown(task, place)
        score = (place + 1) / (len(self.order.rows) + 1) if place is not None else 1.0
        if self.by_confidence:
            score = max((float(c["prob"]) for c in shown.candidates), default=1.0)
        return prediction(
            self.mapping,
            self.taxonomy,
            candidates=shown.candidates,
            score=score,
            model_version=version,
            blind=shown.blind,
        )

    def _shown(self, task: LinkedTask, place: int | None) -> tuple[Shown, str]:
        """Return what to suggest and its version: what the project is known to show, else what the order says."""
        if task.shown is not None and task.model_version is not None:
            return task.shown, task.model_version
        version = self.order.model_version or ""
        if place is None:
            return Shown(model_version=version), version
        order = self.order
        return Shown(order.arm(place), version, order.blind(place), order.candidates(place)), version


def _id_of(task: object) -> int | None:
    task_id = task.get("id") if isinstance(task, dict) else None
    return task_id if type(task_id) is int and 0 < task_id < 2**63 else None


def _is_linked(project: object, link: Link) -> bool:
    """Tell whether `<id>.<time>` names the linked project; who names none is believed to ask for it."""
    return project is None or str(project).partition(".")[0] == str(link.project_id)


def _refused(task: LinkedTask | None, order: FaceOrder) -> str | None:
    if task is None:
        return NOT_OURS
    if task.state != "open":
        return f"a task that is {task.state}"
    if task.model_version is None and order.model_version is None:
        return "no model has read the faces yet"
    return None


def _place(places: NDArray[np.int64], row: int) -> int | None:
    place = int(places[row]) if row < len(places) else -1
    return place if place >= 0 else None
