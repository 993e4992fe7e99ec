"""The link to a project in another labeling tool: what is out there, what came back, and storing it exactly once."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from annotator.consensus import effective
from annotator.errors import AnnotatorError, ConflictError
from annotator.records import Annotation, Stored
from annotator.store.database import Database
from annotator.store.decisions import READ, Decisions, as_annotation
from annotator.store.exchange_answers import LinkedAnswers, put_answers
from annotator.store.exchange_outbox import NOTES, Outbox
from annotator.store.exchange_records import (
    ANSWER_STATES,
    OUTBOX_STATES,
    TASK_STATES,
    ForeignAnswer,
    Incoming,
    Link,
    LinkedAnswer,
    foreign_prefix,
)
from annotator.store.exchange_tasks import LinkedTasks
from annotator.store.pacing import Pace
from annotator.store.tables import annotations, images
from annotator.store.tables import exchange_answers as answers
from annotator.store.tables import exchange_links as links
from annotator.store.tables import exchange_outbox as outbox
from annotator.store.tables import exchange_tasks as tasks

_CHUNK = 500
_WINDOW = 5_000
_CHANGEABLE = frozenset(c.name for c in links.c) - {"id", "linked_at", "active"}


class Exchange(LinkedTasks, LinkedAnswers, Outbox):
    """Everything that a link to another labeling tool keeps in the store."""

    def __init__(self, database: Database, decisions: Decisions) -> None:
        super().__init__(database)
        self._decisions = decisions
        self._record_pace = Pace(10)

    def add_link(self, url: str, project_id: int, title: str, settings: dict[str, Any], *, anew: bool = False) -> Link:
        """Link a project and return the link.

        A project that was linked before gets its old link back, with the tasks and answers that are known of it: they
        must not be stored twice. With `anew` it is taken for another one (a server that was set up from scratch).

        Raises:
            ConflictError: a project is linked already.
        """
        values = {"url": url, "project_id": project_id, "title": title, "settings": settings, "active": True}
        with self._database.write() as connection:
            active = connection.execute(select(links).where(links.c.active)).one_or_none()
            if active is not None:
                raise ConflictError(f"project {active.project_id} of {active.url} is linked already: unlink it first")
            earlier = select(links.c.id).where(links.c.url == url, links.c.project_id == project_id)
            link_id = None if anew else connection.execute(earlier.order_by(links.c.id.desc()).limit(1)).scalar()
            if link_id is None:
                values |= {"sent_seq": 0, "linked_at": datetime.now(UTC)}
                link_id = connection.execute(insert(links).values(values).returning(links.c.id)).scalar_one()
            else:
                connection.execute(update(links).where(links.c.id == link_id).values(values))
            return _link(connection.execute(select(links).where(links.c.id == link_id)).one())

    def link(self) -> Link | None:
        """Return the active link."""
        with self._database.read() as connection:
            row = connection.execute(select(links).where(links.c.active)).one_or_none()
        return None if row is None else _link(row)

    def links(self) -> list[Link]:
        """Return every link that ever was, oldest first."""
        with self._database.read() as connection:
            return [_link(row) for row in connection.execute(select(links).order_by(links.c.id))]

    def update_link(self, link_id: int, **columns: Any) -> None:
        """Change columns of a link.

        Raises:
            ValueError: a column that is unknown or cannot be changed.
        """
        if unknown := columns.keys() - _CHANGEABLE:
            raise ValueError(f"a link has no column {', '.join(sorted(unknown))} to change")
        with self._database.write() as connection:
            connection.execute(update(links).where(links.c.id == link_id).values(**columns))

    def close_link(self, link_id: int) -> None:
        """End a link; its tasks and answers stay known."""
        with self._database.write() as connection:
            connection.execute(update(links).where(links.c.id == link_id).values(active=False))

    @property
    def batch_size(self) -> int:
        """How many answers `record` stores in one commit without keeping others waiting, by the last commits' times."""
        return self._record_pace.size

    def record(self, link_id: int, incoming: Sequence[Incoming]) -> list[Stored | AnnotatorError]:
        """Store answers of the linked project, or their retractions, each with its `LinkedAnswer`, in one commit.

        A repeated `client_id` returns what was stored first and puts the `LinkedAnswer` all the same. A wrong one
        becomes its error and leaves the others alone; of it nothing is stored.

        Raises:
            WorkspaceError: the store could not be written; none was stored.
        """
        outcomes: list[Stored | AnnotatorError] = []
        seen: list[LinkedAnswer] = []
        with self._record_pace.commit(self._database, len(incoming)) as connection:
            for item in incoming:
                # No savepoint: what is wrong with an item shows before anything of it is written.
                try:
                    stored = self._store(connection, link_id, item)
                except AnnotatorError as error:
                    outcomes.append(error)
                    continue
                outcomes.append(stored)
                answered = isinstance(item, ForeignAnswer)
                seen.append(replace(item.linked, annotation_id=stored.annotation.id) if answered else item.linked)
            put_answers(connection, link_id, seen, is_sqlite=self._database.is_sqlite)
        return outcomes

    def _store(self, connection: Connection, link_id: int, item: Incoming) -> Stored:
        prefix, now = foreign_prefix(link_id), datetime.now(UTC)
        if isinstance(item, ForeignAnswer):
            return self._decisions.store_foreign(connection, item, prefix, now)
        return self._decisions.retract_foreign(connection, item, prefix, now)

    def standing(self, rows: Collection[int]) -> dict[int, list[Annotation]]:
        """Return what people said about faces and their copies and still stands, by row, in commit order.

        Answers of every kind: neither undone nor superseded. A person may have several, the last one counts (with those
        `beside` it). Rows of which nothing stands are left out.
        """
        found: dict[int, list[Annotation]] = {}
        wanted = sorted(set(rows))
        with self._database.read() as connection:
            for start in range(0, len(wanted), _CHUNK):
                found |= _standing(connection, wanted[start : start + _CHUNK])
        return found

    def touched_rows(self, link_id: int, after_seq: int, upto_seq: int, limit: int) -> dict[int, int]:
        """Return the rows of tasks whose face got annotations above `after_seq` and up to `upto_seq`.

        In the order of the first such annotation, whose seq is the value: when `limit` rows come, everything below the
        last value is covered (copies of a face share their seq).
        """
        found: dict[int, int] = {}
        with self._database.read() as connection:
            # Window by window: a page costs what it reads, however much comes behind it.
            for start in range(after_seq, upto_seq, _WINDOW):
                stop = min(start + _WINDOW, upto_seq)
                fresh = _touched(connection, link_id, start, stop, limit + len(found))
                found |= {row: seq for row, seq in fresh if row not in found}
                if len(found) >= limit:
                    break
        return dict(islice(found.items(), limit))

    def counts(self, link_id: int) -> dict[str, dict[str, int]]:
        """Return how many tasks, answers and outbox items (without notes) there are, by state; every state is named."""
        found: dict[str, dict[str, int]] = {}
        with self._database.read() as connection:
            for name, table, states in (
                ("tasks", tasks, TASK_STATES),
                ("answers", answers, ANSWER_STATES),
                ("outbox", outbox, OUTBOX_STATES),
            ):
                query = select(table.c.state, func.count()).where(table.c.link_id == link_id).group_by(table.c.state)
                if table is outbox:
                    query = query.where(outbox.c.kind.not_in(NOTES))
                numbers = {str(state): int(number) for state, number in connection.execute(query)}
                found[name] = dict.fromkeys(states, 0) | numbers
        return found


def _touched(connection: Connection, link_id: int, after: int, upto: int, limit: int) -> list[tuple[int, int]]:
    said, asked = images.alias(), images.alias()
    first = func.min(annotations.c.seq)
    query = (
        select(tasks.c.row, first)
        .select_from(annotations)
        .join(said, said.c.row == annotations.c.row)
        .join(asked, asked.c.group_row == said.c.group_row)
        .join(tasks, tasks.c.row == asked.c.row)
        .where(tasks.c.link_id == link_id, annotations.c.seq > after, annotations.c.seq <= upto)
        .group_by(tasks.c.row)
        .order_by(first, tasks.c.row)
    )
    return [(int(row), int(seq)) for row, seq in connection.execute(query.limit(limit))]


def _standing(connection: Connection, rows: Sequence[int]) -> dict[int, list[Annotation]]:
    groups = select(images.c.group_row).where(images.c.row.in_(rows))
    members = select(images.c.row, images.c.group_row).where(images.c.group_row.in_(groups))
    group_of = {int(row): int(group) for row, group in connection.execute(members)}
    said: dict[int, list[Annotation]] = defaultdict(list)
    query = READ.where(images.c.group_row.in_(groups), annotations.c.user_id.is_not(None))
    for row in connection.execute(query):
        said[group_of[row.row]].append(as_annotation(row))
    stands = {group: effective(of_group) for group, of_group in said.items()}
    return {row: stands[group_of[row]] for row in rows if stands.get(group_of.get(row, -1))}


def _link(row: Any) -> Link:
    return Link(**row._asdict())
