"""Tasks that the link does not know, but that name one of our images: the same import that arrived twice.

A push whose answer was lost may be carried out after it was looked for. Somebody may have answered the copy meanwhile,
and that answer is as good as any: the copy is linked to the face. A task whose own push is still under way is left to
the push.
"""

from collections.abc import Collection
from dataclasses import replace

from annotator.errors import NotFoundError
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.api import filters as where
from annotator.store.exchange_records import LinkedTask

IMAGE_ID = "image_id"
_CHUNK = 250


def find_doubles(linked: Linked, unknown: Collection[int]) -> dict[int, LinkedTask]:
    """Return those of the unknown tasks whose face is linked already, by id, as they are to be linked."""
    found: dict[int, LinkedTask] = {}
    wanted = sorted(unknown)
    for start in range(0, len(wanted), _CHUNK):
        chosen = wanted[start : start + _CHUNK]
        tasks, _ = linked.server.tasks(
            linked.link.project_id, include=("id", "data"), filters=[where.among(chosen)], page_size=len(chosen)
        )
        rows = {}
        for task in tasks:
            row = _row(linked, task["data"].get(IMAGE_ID))
            if row is not None:
                rows[int(task["id"])] = row
        first = linked.store.exchange.tasks_of_rows(linked.link.id, rows.values())
        for task_id, row in rows.items():
            live = next((task for task in first.get(row, ()) if task.state in ("open", "answered")), None)
            if live is not None:
                found[task_id] = replace(live, task_id=task_id, state="open", picture=None)
    return found


def _row(linked: Linked, image_id: object) -> int | None:
    if not isinstance(image_id, str):
        return None
    try:
        return linked.store.images.by_id(image_id).row
    except NotFoundError:
        return None
