"""The `labels` table: what annotations amount to, per group; always derivable again."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, bindparam, cast, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from annotator.consensus import derive, opinions
from annotator.errors import NotFoundError
from annotator.records import Label, LabelRow, LabelState
from annotator.store import meta
from annotator.store.database import Database
from annotator.store.tables import annotations, images, labels

_CHUNK = 500
_REBUILD_BATCH = 200
LabelRows = list[LabelRow]


class Opinion(NamedTuple):
    """The columns of an annotation that `consensus.derive` reads, and its group."""

    id: int
    seq: int
    user_id: int | None
    kind: str
    classes: tuple[str, ...]
    supersedes: int | None
    adjudicates: bool
    votes: dict[str, int] | None
    group_row: int
    beside: bool = False


_OPINION: tuple[Any, ...] = (
    annotations.c.id,
    annotations.c.seq,
    annotations.c.user_id,
    annotations.c.kind,
    annotations.c.classes,
    annotations.c.supersedes,
    annotations.c.adjudicates,
    annotations.c.votes,
    images.c.group_row,
    annotations.c.beside,
)
_OPINIONS = select(*_OPINION).join_from(images, annotations, annotations.c.row == images.c.row)
# Statements of the hot path are built once: building one costs more than running it.
_OPINIONS_OF_GROUP = _OPINIONS.where(images.c.group_row == bindparam("_group"))
LABEL_COLUMNS = (
    labels.c.row,
    labels.c.state,
    cast(labels.c.classes, Text),
    cast(labels.c.soft, Text),
    labels.c.locked,
    labels.c.num_annotators,
    labels.c.imported,
    labels.c.seq,
)
"""What `as_label` reads. JSON comes as text: most of it is decoded once only."""
_LABELS = select(*LABEL_COLUMNS)
_DROP_LABEL = delete(labels).where(labels.c.row == bindparam("_row"))


def opinions_of_group(connection: Connection, group: int) -> list[Opinion]:
    """Return all annotations of a group."""
    return [Opinion(*row) for row in connection.execute(_OPINIONS_OF_GROUP, {"_group": group})]


def opinions_by_group(connection: Connection, groups: Iterable[int] | None = None) -> dict[int, list[Opinion]]:
    """Return all annotations by group, of all groups or of the given ones."""
    found: dict[int, list[Opinion]] = defaultdict(list)
    if groups is None:
        for row in connection.execute(_OPINIONS):
            found[row.group_row].append(Opinion(*row))
        return found
    wanted = sorted(groups)
    for start in range(0, len(wanted), _CHUNK):
        query = _OPINIONS.where(images.c.group_row.in_(wanted[start : start + _CHUNK]))
        for row in connection.execute(query):
            found[row.group_row].append(Opinion(*row))
    return found


def label_values(row: int, label: Label) -> dict[str, Any]:
    """Return the `labels` columns of a label."""
    return {
        "row": row,
        "state": label.state,
        "classes": list(label.classes),
        "soft": dict(label.soft),
        "locked": label.locked,
        "num_annotators": label.num_annotators,
        "imported": label.imported,
        "seq": label.seq,
    }


def put_label(connection: Connection, database: Database, row: int, label: Label) -> None:
    """Store the label of a group; a group without one has no row."""
    if label.state == "unlabeled":
        connection.execute(_DROP_LABEL, {"_row": row})
        return
    connection.execute(_put_label(database.is_sqlite), label_values(row, label))


@cache
def _put_label(is_sqlite: bool) -> Any:
    query = sqlite.insert(labels) if is_sqlite else postgresql.insert(labels)
    changed = {c.name: query.excluded[c.name] for c in labels.c if c.name != "row"}
    return query.on_conflict_do_update(index_elements=["row"], set_=changed)


def refresh_labels(connection: Connection, database: Database, groups: Collection[int], classes: Sequence[str]) -> int:
    """Derive the labels of `groups` anew inside the caller's transaction; return how many changed.

    A row that no longer represents a group has no annotations by group, so its label goes.
    """
    if not groups:
        return 0
    found = opinions_by_group(connection, groups)
    stored = _stored(connection, groups)
    changed = 0
    for group in groups:
        label = derive(found.get(group, ()), classes)
        if label != stored.get(group, Label("unlabeled")):
            put_label(connection, database, group, label)
            changed += 1
    return changed


class Labels:
    """Reading and rebuilding of labels."""

    def __init__(self, database: Database, classes: Sequence[str]) -> None:
        self._database = database
        self._classes = tuple(classes)

    def label(self, row: int) -> Label:
        """Return the label of the group of any of its rows."""
        group = select(images.c.group_row).where(images.c.row == row)
        with self._database.read() as connection:
            representative = connection.execute(group).scalar()
            if representative is None:
                raise NotFoundError(f"no image on row {row}")
            return _stored(connection, [representative]).get(representative, Label("unlabeled"))

    def labels(self, states: Collection[LabelState] | None = None) -> LabelRows:
        """Return the labels of all groups, or those in `states`, with the active members they propagate to."""
        with self._database.read() as connection:
            return _label_rows(connection, states, images.c.state == "active")

    def label_view(self) -> tuple[int, LabelRows]:
        """Return (label_seq, labels for training): active pool faces that are not kept for validation."""
        usable = (images.c.state == "active") & (images.c.split == "pool") & ~images.c.reserved
        with self._database.read() as connection:
            return meta.last_seq(connection), _label_rows(connection, None, usable)

    def answered_groups(self, user_id: int | None = None) -> set[int]:
        """Return the groups that a person (or this person) has an answer on that stands; skips and flags are none."""
        if user_id is None:
            query = select(labels.c.row).where(~labels.c.imported)
            with self._database.read() as connection:
                return set(connection.execute(query).scalars())
        return {group for group, said in self._own(user_id).items() if opinions(said)}

    def skipped_groups(self, user_id: int) -> set[int]:
        """Return the groups that this person skipped or flagged last."""
        skipped = set()
        for group, said in self._own(user_id).items():
            undone = {a.supersedes for a in said if a.kind == "undo"}
            rest = [a for a in said if a.kind != "undo" and a.id not in undone]
            if rest and max(rest, key=lambda a: a.seq).kind in ("skip", "flag"):
                skipped.add(group)
        return skipped

    def label_counts(self) -> dict[str, int]:
        """Return how many active pool samples are labeled, partial, disputed, unusable or unlabeled."""
        query = (
            select(labels.c.state, func.count())
            .select_from(images.outerjoin(labels, labels.c.row == images.c.group_row))
            .where(images.c.state == "active", images.c.split == "pool")
            .group_by(labels.c.state)
        )
        counts: dict[str, int] = dict.fromkeys(("labeled", "partial", "disputed", "unusable", "unlabeled"), 0)
        with self._database.read() as connection:
            for state, number in connection.execute(query):
                counts[state or "unlabeled"] += number
        return counts

    def differing(self) -> list[int]:
        """Return the groups whose stored label is not what their annotations amount to."""
        with self._database.read() as connection:
            found = opinions_by_group(connection)
            stored = _stored(connection, None)
        none = Label("unlabeled")
        everyone = sorted(found.keys() | stored.keys())
        return [g for g in everyone if derive(found.get(g, ()), self._classes) != stored.get(g, none)]

    def rebuild(self) -> int:
        """Derive every label anew and return how many were different. Writes in short transactions."""
        wrong = self.differing()
        changed = 0
        for start in range(0, len(wrong), _REBUILD_BATCH):
            with self._database.write() as connection:
                batch = wrong[start : start + _REBUILD_BATCH]
                changed += refresh_labels(connection, self._database, batch, self._classes)
        return changed

    def _own(self, user_id: int) -> Mapping[int, list[Opinion]]:
        own: dict[int, list[Opinion]] = defaultdict(list)
        with self._database.read() as connection:
            for row in connection.execute(_OPINIONS.where(annotations.c.user_id == user_id)):
                own[row.group_row].append(Opinion(*row))
        return own


def _stored(connection: Connection, groups: Collection[int] | None) -> dict[int, Label]:
    if groups is None:
        return {row[0]: as_label(row) for row in connection.execute(_LABELS)}
    wanted = sorted(groups)
    found = {}
    for start in range(0, len(wanted), _CHUNK):
        query = _LABELS.where(labels.c.row.in_(wanted[start : start + _CHUNK]))
        found.update({row[0]: as_label(row) for row in connection.execute(query)})
    return found


def as_label(row: Any) -> Label:
    """Return the label in a row of `LABEL_COLUMNS`."""
    _, state, classes, soft, locked, num_annotators, imported, seq = row
    shares = json.loads(soft) if soft != "{}" else {}
    return Label(state, _slugs(classes), shares, locked, num_annotators, imported, seq)


@lru_cache(maxsize=4096)
def _slugs(text: str) -> tuple[str, ...]:
    """Decode a column of few different values: a hundred thousand labels share some dozen sets of classes."""
    return tuple(json.loads(text))


def _label_rows(connection: Connection, states: Collection[LabelState] | None, usable: Any) -> LabelRows:
    labeled = _LABELS
    members = (
        select(images.c.group_row, images.c.row)
        .join_from(images, labels, labels.c.row == images.c.group_row)
        .where(usable)
        .order_by(images.c.row)
    )
    if states is not None:
        labeled = labeled.where(labels.c.state.in_(states))
        members = members.where(labels.c.state.in_(states))
    rows: dict[int, list[int]] = defaultdict(list)
    for group, row in connection.execute(members):
        rows[group].append(row)
    found = connection.execute(labeled.order_by(labels.c.row))
    return [LabelRow(r[0], as_label(r), tuple(rows[r[0]])) for r in found if r[0] in rows]
