"""The tasks that a project had before it was linked: each gets the image it shows, or is left out with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from annotator.labelstudio.api.server import Server
from annotator.labelstudio.linking.matching import ImageIndex
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask

_PAGE = 500


@dataclass(slots=True)
class Adopted:
    """What became of the tasks: `linked` newly, `known` before, `left_out` with the reason by task id."""

    linked: int = 0
    known: int = 0
    left_out: dict[int, str] = field(default_factory=dict)


def adopt_tasks(store: LabelStore, server: Server, link: Link, data_key: str) -> Adopted:
    """Link every task that is not known yet; those that leave a doubt stay unlinked.

    Raises:
        UnreachableError, RefusedError: of the server; the tasks read until then are linked.
    """
    wanted = ("id", "data", "total_annotations")
    tasks = server.iter_tasks(link.project_id, include=wanted, page_size=_PAGE)
    index: ImageIndex | None = None
    told = Adopted()
    while page := list(islice(tasks, _PAGE)):
        there = store.exchange.tasks_by_id(link.id, [int(task["id"]) for task in page])
        fresh = [task for task in page if int(task["id"]) not in there]
        told.known += len(page) - len(fresh)
        if fresh:
            index = index or ImageIndex(store)  # reads every path: not when the link is only brought up to date
            _link_page(store, link, index, data_key, fresh, told)
    return told


def _link_page(
    store: LabelStore, link: Link, index: ImageIndex, data_key: str, fresh: Sequence[dict[str, Any]], told: Adopted
) -> None:
    new = []
    for task in fresh:
        task_id = int(task["id"])
        row = index.find(task["data"], data_key)
        if isinstance(row, int):
            new.append(LinkedTask(task_id, row, "answered" if task["total_annotations"] else "open"))
        else:
            told.left_out[task_id] = row
    store.exchange.put_tasks(link.id, new)
    told.linked += len(new)
