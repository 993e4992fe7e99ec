"""The tasks of a project that changed, page by page, so that no row is ever skipped.

Label Studio sorts by one field alone and numbers its pages, so neither page numbers nor `updated_at, id` can be trusted
while rows change. Instead each page starts at the newest time of the one before, that time included: a task that
changes meanwhile moves behind it and comes again. Where one microsecond holds more tasks than a page (a bulk deletion
stamps thousands alike) they are read by ascending id.

A task is stamped before its change is committed, so whoever reads pages must begin `OVERLAP` before the point up to
which they have read; what is committed later than that shows in the comparison of ids only.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from annotator.labelstudio.api import filters as where
from annotator.labelstudio.api.filters import Filter
from annotator.labelstudio.api.server import Server

PAGE = 500
OVERLAP = timedelta(seconds=20)
FIELDS = (
    "id",
    "updated_at",
    "annotations",
    "result",
    "completed_by",
    "was_cancelled",
    "lead_time",
    "created_at",
    "import_id",
)
"""Of a task and its annotations alike; everything else, the picture above all, stays where it is."""
Task = dict[str, Any]


def moment(text: str) -> datetime:
    """Return a time as the server writes it, which leaves out the microseconds when there are none."""
    parsed = datetime.fromisoformat(text)
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def changed_tasks(
    server: Server,
    project_id: int,
    since: datetime | None,
    *,
    fields: Sequence[str] = FIELDS,
    page_size: int | None = None,
) -> Iterator[list[Task]]:
    """Yield pages of tasks that changed at `since` or later, ascending by time.

    Everything that changed before the last task of a page has been yielded with it. One request when there is nothing.
    With `since` None they are those that were ever annotated, and after them those that were ever skipped.
    """
    page_size = page_size or PAGE
    if since is None:
        yield from _changed(server, project_id, None, [where.annotated()], fields, page_size)
        yield from _changed(server, project_id, None, [where.skipped()], fields, page_size)
    else:
        yield from _changed(server, project_id, since, [], fields, page_size)


def ahead(pages: Iterator[list[Task]]) -> Iterator[list[Task]]:
    """Yield the same pages, the next one being read while one is worked on."""
    with ThreadPoolExecutor(1, "labelstudio") as reader:
        following = reader.submit(next, pages, None)
        while (page := following.result()) is not None:
            following = reader.submit(next, pages, None)
            yield page


def _changed(
    server: Server,
    project_id: int,
    low: datetime | None,
    always: list[Filter],
    fields: Sequence[str],
    page_size: int,
) -> Iterator[list[Task]]:
    before: set[tuple[int, str]] = set()
    while True:
        filters = [*always, where.since(low)] if low is not None else always
        found, _ = server.tasks(
            project_id, include=fields, filters=filters, ordering=["tasks:updated_at"], page_size=page_size
        )
        yield [task for task in found if (task["id"], task["updated_at"]) not in before]
        if len(found) < page_size:
            return
        high = moment(found[-1]["updated_at"])
        if high == low:
            yield from _pages(server, project_id, [*always, where.changed_at(high)], fields, page_size)
            high += timedelta(microseconds=1)
        low, before = high, {(task["id"], task["updated_at"]) for task in found}


def named_tasks(server: Server, project_id: int, ids: Sequence[int]) -> Iterator[list[Task]]:
    """Yield pages of the named tasks; those that are gone are left out."""
    for start in range(0, len(ids), PAGE // 2):
        chosen = ids[start : start + PAGE // 2]
        found, _ = server.tasks(project_id, include=FIELDS, filters=[where.among(chosen)], page_size=len(chosen))
        yield found


def _pages(
    server: Server, project_id: int, filters: Sequence[Filter], fields: Sequence[str], page_size: int
) -> Iterator[list[Task]]:
    page: list[Task] = []
    for task in server.iter_tasks(project_id, include=fields, filters=filters, page_size=page_size):
        page.append(task)
        if len(page) == page_size:
            yield page
            page = []
    if page:
        yield page
