"""The annotations of a linked project that were seen, and which of ours says the same."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from annotator.store.exchange_records import AnswerState, LinkedAnswer
from annotator.store.pacing import Paced
from annotator.store.tables import exchange_answers as answers

_CHUNK = 500
_COLUMNS = (
    answers.c.ls_id,
    answers.c.task_id,
    answers.c.user,
    answers.c.ls_updated_at,
    answers.c.content,
    answers.c.annotation_id,
    answers.c.state,
    answers.c.reason,
)


class LinkedAnswers(Paced):
    """Reading and writing of what was seen. Long lists are written in several short commits, which may be repeated."""

    def put_answers(self, link_id: int, new: Sequence[LinkedAnswer]) -> None:
        """Store what was seen; an annotation that is known is replaced."""

        def write(connection: Connection, batch: Sequence[LinkedAnswer]) -> None:
            put_answers(connection, link_id, batch, is_sqlite=self._database.is_sqlite)

        self._in_short_commits("answers", new, write)

    def answers_of_tasks(self, link_id: int, task_ids: Collection[int]) -> dict[int, list[LinkedAnswer]]:
        """Return what was seen of tasks, by task and ascending by id; tasks without any are left out."""
        return self._by(link_id, answers.c.task_id, task_ids, lambda answer: answer.task_id)

    def answers_of_annotations(self, link_id: int, ids: Collection[int]) -> dict[int, list[LinkedAnswer]]:
        """Return what says the same as annotations of ours, by our id; ids without any are left out."""
        return self._by(link_id, answers.c.annotation_id, ids, lambda answer: answer.annotation_id)

    def answers_by_id(self, link_id: int, ls_ids: Collection[int]) -> dict[int, LinkedAnswer]:
        """Return those of the named annotations that were seen, by their id in the linked project."""
        found = self._by(link_id, answers.c.ls_id, ls_ids, lambda answer: answer.ls_id)
        return {ls_id: same[0] for ls_id, same in found.items()}

    def quarantined(self, link_id: int, limit: int = 100) -> list[LinkedAnswer]:
        """Return what could not be stored, with the reasons, the oldest first."""
        return self._in_state(link_id, "quarantined", limit)

    def conflicts(self, link_id: int, limit: int = 100) -> list[LinkedAnswer]:
        """Return what was changed on both sides at once, the oldest first."""
        return self._in_state(link_id, "conflict", limit)

    def _in_state(self, link_id: int, state: AnswerState, limit: int) -> list[LinkedAnswer]:
        query = select(*_COLUMNS).where(answers.c.link_id == link_id, answers.c.state == state)
        with self._database.read() as connection:
            return [LinkedAnswer(*row) for row in connection.execute(query.order_by(answers.c.ls_id).limit(limit))]

    def _by(self, link_id: int, column: Any, ids: Collection[int], key: Any) -> dict[int, list[LinkedAnswer]]:
        found: dict[int, list[LinkedAnswer]] = defaultdict(list)
        wanted = sorted(set(ids))
        with self._database.read() as connection:
            for start in range(0, len(wanted), _CHUNK):
                chosen = column.in_(wanted[start : start + _CHUNK])
                query = select(*_COLUMNS).where(answers.c.link_id == link_id, chosen).order_by(answers.c.ls_id)
                for row in connection.execute(query):
                    answer = LinkedAnswer(*row)
                    found[key(answer)].append(answer)
        return dict(found)


def put_answers(connection: Connection, link_id: int, new: Sequence[LinkedAnswer], *, is_sqlite: bool) -> None:
    """Store what was seen inside the caller's transaction."""
    if new:
        connection.execute(_upsert(is_sqlite), [{"link_id": link_id, **asdict(answer)} for answer in new])


@cache
def _upsert(is_sqlite: bool) -> Any:
    query = sqlite.insert(answers) if is_sqlite else postgresql.insert(answers)
    changed = {c.name: query.excluded[c.name] for c in answers.c if not c.primary_key}
    return query.on_conflict_do_update(index_elements=["link_id", "ls_id"], set_=changed)
