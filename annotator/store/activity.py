"""What people did, read in few columns: the queue follows it, the counters show it.

`decisions.list` returns whole annotations; these queries return what is needed to know who has seen which face, so
that a server on 200,000 answers starts in about a second.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select

from annotator.consensus import COUNTING
from annotator.store.database import Database
from annotator.store.tables import annotations, images, labels

# What a person does with a face on screen; an undo takes one of these back.
_DEEDS = (*sorted(COUNTING), "skip", "flag")


@dataclass(frozen=True, slots=True)
class Deed:
    """One row of a person, in the few columns that matter to the queue. `group` is the face's representative row."""

    id: int
    seq: int
    group: int
    user_id: int
    kind: str
    supersedes: int | None


@dataclass(frozen=True, slots=True)
class Moment:
    """One row of a person as counters and paces need it. `supersedes`: what it corrects or undoes."""

    id: int
    seq: int
    user_id: int
    kind: str
    arm: str | None
    duration_ms: int | None
    late: bool
    supersedes: int | None
    created_at: datetime


class Activity:
    """Reads over the annotations of people (never imports)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def since(self, seq: int, limit: int | None = None) -> list[Deed]:
        """Return what people did after `seq`, in commit order, at most `limit` rows."""
        query = self._deeds().where(annotations.c.seq > seq).order_by(annotations.c.seq).limit(limit)
        return self._read(query)

    def moments(self, after_seq: int, limit: int | None = None) -> list[Moment]:
        """Return when and how people answered after `after_seq`, in commit order, at most `limit` rows."""
        columns = annotations.c
        query = (
            select(
                columns.id,
                columns.seq,
                columns.user_id,
                columns.kind,
                columns.arm,
                columns.duration_ms,
                columns.late,
                columns.supersedes,
                columns.created_at,
            )
            .where(columns.seq > after_seq, columns.user_id.is_not(None))
            .order_by(columns.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Moment(*row) for row in connection.execute(query)]

    def of_group(self, group: int) -> list[Deed]:
        """Return everything that people did with a face and its copies, in commit order."""
        return self._read(self._deeds().where(images.c.group_row == group).order_by(annotations.c.seq))

    def counts(self, user_id: int, since: datetime) -> tuple[int, int]:
        """Return how many faces a user has dealt with: (at or after `since`, ever).

        Skips and flags count; what was undone and what corrects an earlier answer does not.
        """
        mine = self._standing(user_id) & annotations.c.supersedes.is_(None)
        query = select(func.count()).select_from(annotations).where(mine)
        with self._database.read() as connection:
            total = connection.scalar(query) or 0
            recent = connection.scalar(query.where(annotations.c.created_at >= since)) or 0
        return recent, total

    def times(self, user_id: int, since: datetime) -> list[datetime]:
        """Return when a user answered at or after `since`, oldest first."""
        query = (
            select(annotations.c.created_at)
            .where(self._standing(user_id), annotations.c.created_at >= since)
            .order_by(annotations.c.seq)
        )
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def latest(self, user_id: int, limit: int) -> list[int]:
        """Return the ids of a user's latest answers that stand, newest first."""
        standing = self._standing(user_id)
        corrected = select(annotations.c.supersedes).where(standing, annotations.c.supersedes.is_not(None))
        query = (
            select(annotations.c.id)
            .where(standing, annotations.c.id.not_in(corrected.scalar_subquery()))
            .order_by(annotations.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def labeled_by_import(self, since_row: int = 0) -> list[int]:
        """Return the groups from `since_row` on that came with a label: nobody has to be asked for one."""
        settled = labels.c.state.in_(("labeled", "partial", "unusable"))
        query = select(labels.c.row).where(labels.c.row >= since_row, labels.c.imported.is_(True), settled)
        with self._database.read() as connection:
            return list(connection.scalars(query))

    @staticmethod
    def _standing(user_id: int) -> ColumnElement[bool]:
        undone = select(annotations.c.supersedes).where(annotations.c.user_id == user_id, annotations.c.kind == "undo")
        return and_(
            annotations.c.user_id == user_id,
            annotations.c.kind.in_(_DEEDS),
            annotations.c.id.not_in(undone.scalar_subquery()),
        )

    @staticmethod
    def _deeds() -> Select[*tuple[Any, ...]]:
        return (
            select(
                annotations.c.id,
                annotations.c.seq,
                images.c.group_row,
                annotations.c.user_id,
                annotations.c.kind,
                annotations.c.supersedes,
            )
            .join(images, images.c.row == annotations.c.row)
            .where(annotations.c.user_id.is_not(None))
        )

    def _read(self, query: Select[*tuple[Any, ...]]) -> list[Deed]:
        with self._database.read() as connection:
            return [Deed(*row) for row in connection.execute(query)]
