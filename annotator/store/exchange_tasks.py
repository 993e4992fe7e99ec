"""The tasks of a linked project: which faces are out there, with what prediction."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from annotator.store.exchange_records import LinkedTask, Shown, TaskState
from annotator.store.pacing import Paced
from annotator.store.tables import exchange_links as links
from annotator.store.tables import exchange_tasks as tasks

_CHUNK = 500
_COLUMNS = (
    tasks.c.task_id,
    tasks.c.row,
    tasks.c.state,
    tasks.c.shown,
    tasks.c.model_version,
    tasks.c.since_seq,
    tasks.c.picture,
)
_CONFIRM = (
    update(tasks)
    .where(tasks.c.link_id == bindparam("_link_id"), tasks.c.task_id == bindparam("_task_id"))
    .values(shown=bindparam("_shown"), model_version=bindparam("_model_version"))
)


class LinkedTasks(Paced):
    """Reading and writing of tasks. Long lists are written in several short commits; every write may be repeated."""

    def put_tasks(self, link_id: int, new: Sequence[LinkedTask]) -> None:
        """Store tasks; one whose id is known is replaced."""
        query = _upsert(self._database.is_sqlite)

        def write(connection: Connection, batch: Sequence[LinkedTask]) -> None:
            connection.execute(query, [_values(link_id, task) for task in batch])

        self._in_short_commits("tasks", new, write)

    def tasks(
        self, link_id: int, after: int = 0, limit: int = 1000, states: Collection[TaskState] | None = None
    ) -> list[LinkedTask]:
        """Return tasks with an id above `after`, ascending, of all states or of these."""
        query = select(*_COLUMNS).where(tasks.c.link_id == link_id, tasks.c.task_id > after)
        if states is not None:
            query = query.where(tasks.c.state.in_(tuple(states)))
        return self._read(query.order_by(tasks.c.task_id).limit(limit))

    def tasks_by_id(self, link_id: int, ids: Collection[int]) -> dict[int, LinkedTask]:
        """Return those of the named tasks that are known, by id."""
        found: dict[int, LinkedTask] = {}
        for chunk in _chunks(ids):
            query = select(*_COLUMNS).where(tasks.c.link_id == link_id, tasks.c.task_id.in_(chunk))
            found |= {task.task_id: task for task in self._read(query)}
        return found

    def tasks_of_rows(self, link_id: int, rows: Collection[int]) -> dict[int, list[LinkedTask]]:
        """Return the tasks of faces by row, each list ascending by id; rows without a task are left out."""
        found: dict[int, list[LinkedTask]] = defaultdict(list)
        for chunk in _chunks(rows):
            query = select(*_COLUMNS).where(tasks.c.link_id == link_id, tasks.c.row.in_(chunk))
            for task in self._read(query.order_by(tasks.c.task_id)):
                found[task.row].append(task)
        return dict(found)

    def set_task_state(self, link_id: int, ids: Collection[int], state: TaskState) -> None:
        """Set the state of tasks; unknown ids are left out."""

        def write(connection: Connection, batch: Sequence[int]) -> None:
            for chunk in _chunks(batch):
                chosen = update(tasks).where(tasks.c.link_id == link_id, tasks.c.task_id.in_(chunk))
                connection.execute(chosen.values(state=state))

        self._in_short_commits("states", sorted(ids), write)

    def confirm_predictions(self, link_id: int, shown: Sequence[tuple[int, Shown]], model_version: str) -> None:
        """Note that the project holds predictions of `model_version` for these tasks, and what they show."""

        def write(connection: Connection, batch: Sequence[tuple[int, Shown]]) -> None:
            values = [
                {"_link_id": link_id, "_task_id": task_id, "_shown": _plain(said), "_model_version": model_version}
                for task_id, said in batch
            ]
            connection.execute(_CONFIRM, values)

        self._in_short_commits("predictions", shown, write)

    def stale_tasks(self, link_id: int, model_version: str, limit: int, after: int = 0) -> list[LinkedTask]:
        """Return open tasks, ascending by id above `after`, whose prediction is of another version or missing."""
        query = select(*_COLUMNS).where(
            tasks.c.link_id == link_id,
            tasks.c.state == "open",
            tasks.c.task_id > after,
            tasks.c.model_version.is_distinct_from(model_version),
        )
        return self._read(query.order_by(tasks.c.task_id).limit(limit))

    def open_rows(self, link_id: int | None = None) -> NDArray[np.int64]:
        """Return the rows of the open tasks, ascending and without repeats: of one link, or of every active one."""
        query = select(tasks.c.row).where(tasks.c.state == "open", _of(link_id))
        with self._database.read() as connection:
            return np.unique(np.fromiter(connection.execute(query).scalars(), dtype=np.int64))

    def open_mark(self, link_id: int | None = None) -> tuple[int, int]:
        """Return what is another pair when other tasks are open: cheap enough to poll."""
        query = select(func.count(), func.sum(tasks.c.task_id)).where(tasks.c.state == "open", _of(link_id))
        with self._database.read() as connection:
            count, total = connection.execute(query).one()
            return int(count), int(total or 0)

    def num_to_erase(self) -> int:
        """Return how many tasks, of whatever link, show erased faces until a sync deletes them."""
        query = select(func.count()).select_from(tasks).where(tasks.c.state == "erase")
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def _read(self, query: Any) -> list[LinkedTask]:
        with self._database.read() as connection:
            return [_task(row) for row in connection.execute(query)]


def _of(link_id: int | None) -> ColumnElement[bool]:
    if link_id is not None:
        return tasks.c.link_id == link_id
    return tasks.c.link_id.in_(select(links.c.id).where(links.c.active))


def _chunks(ids: Collection[int]) -> list[list[int]]:
    wanted = sorted(set(ids))
    return [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]


def _plain(shown: Shown | None) -> dict[str, Any] | None:
    return None if shown is None else asdict(shown)


def _values(link_id: int, task: LinkedTask) -> dict[str, Any]:
    return {
        "link_id": link_id,
        "task_id": task.task_id,
        "row": task.row,
        "state": task.state,
        "shown": _plain(task.shown),
        "model_version": task.model_version,
        "since_seq": task.since_seq,
        "picture": task.picture,
    }


def _task(row: Any) -> LinkedTask:
    task_id, face, state, shown, *rest = row
    if shown is not None:
        shown = Shown(shown["arm"], shown["model_version"], shown["blind"], tuple(shown["candidates"]))
    return LinkedTask(task_id, face, state, shown, *rest)


@cache
def _upsert(is_sqlite: bool) -> Any:
    query = sqlite.insert(tasks) if is_sqlite else postgresql.insert(tasks)
    changed = {c.name: query.excluded[c.name] for c in tasks.c if not c.primary_key}
    return query.on_conflict_do_update(index_elements=["link_id", "task_id"], set_=changed)
