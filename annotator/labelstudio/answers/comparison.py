"""The ids of both sides, compared: what no time of change tells.

A deleted task leaves nothing behind to be listed, and a server that dies between deleting an annotation and stamping
its task never stamps it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from annotator.labelstudio.answers.linked import Linked
from annotator.store.exchange_records import LinkedTask

_PAGE = 1000


@dataclass(slots=True)
class Comparison:
    """Task ids: deleted there; there again; with other annotations than were seen; how many were read."""

    gone: list[int] = field(default_factory=list)
    back: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    tasks: int = 0


def compare_ids(linked: Linked) -> Comparison:
    """Go through all tasks of the project and all linked ones, both ascending, a page at a time."""
    found = Comparison()
    ours = _linked_tasks(linked)
    head = next(ours, None)
    for page in _ids_there(linked):
        found.tasks += len(page)
        seen = linked.store.exchange.answers_of_tasks(linked.link.id, list(page))
        for task_id, annotations in page.items():
            while head is not None and head.task_id < task_id:
                _note_gone(head, found)
                head = next(ours, None)
            if head is not None and head.task_id == task_id:
                if head.state == "gone":
                    found.back.append(task_id)
                head = next(ours, None)
            if annotations != {a.ls_id for a in seen.get(task_id, ()) if a.state != "deleted"}:
                found.again.append(task_id)
    while head is not None:
        _note_gone(head, found)
        head = next(ours, None)
    return found


def _note_gone(task: LinkedTask, found: Comparison) -> None:
    if task.state in ("open", "answered"):
        found.gone.append(task.task_id)


def _linked_tasks(linked: Linked) -> Iterator[LinkedTask]:
    after = 0
    while page := linked.store.exchange.tasks(linked.link.id, after, _PAGE):
        yield from page
        after = page[-1].task_id


def _ids_there(linked: Linked) -> Iterator[dict[int, set[int]]]:
    """Yield pages of task ids with the ids of their annotations."""
    page: dict[int, set[int]] = {}
    include = ("id", "annotations_ids")
    for task in linked.server.iter_tasks(linked.link.project_id, include=include, page_size=2 * _PAGE):
        page[int(task["id"])] = {int(number) for number in re.findall(r"\d+", str(task["annotations_ids"] or ""))}
        if len(page) == _PAGE:
            yield page
            page = {}
    if page:
        yield page
