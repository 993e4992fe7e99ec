"""People's decisions: stored once, durable before the caller is told, never changed, never refused for being late."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from annotator.consensus import COUNTING, derive, opinions
from annotator.errors import AnnotatorError, ConflictError, InputError, NotFoundError
from annotator.records import Annotation, Answer, Stored, User
from annotator.store import grouping, meta
from annotator.store.answers import blank_values, check_answer, check_client_id
from annotator.store.database import Database
from annotator.store.exchange_records import ForeignAnswer, ForeignRetraction, Shown
from annotator.store.labels import Labels, Opinion, opinions_of_group, put_label
from annotator.store.tables import annotations, images, leases, users
from annotator.taxonomy import Taxonomy

FOREIGN = "labelstudio"
"""The `source` of everything that came from a linked project."""
Annotations = list[Annotation]
READ = (
    select(annotations, images.c.image_id, users.c.name.label("user_name"))
    .join_from(annotations, images, annotations.c.row == images.c.row)
    .outerjoin(users, annotations.c.user_id == users.c.id)
)
# Statements of the hot path are built once: building one costs more than running it.
_BY_CLIENT = select(annotations.c.id, annotations.c.user_id).where(annotations.c.client_id == bindparam("_client_id"))
_IMAGE = select(images.c.row, images.c.group_row, images.c.state, images.c.reserved)
_IMAGE_BY_ID = _IMAGE.where(images.c.image_id == bindparam("_image_id"))
_LEASE = select(leases).where(leases.c.id == bindparam("_id"))
_CLOSE = update(leases).where(leases.c.id == bindparam("_id")).values(closed=True)
_INSERT = insert(annotations)


class _Lease(NamedTuple):
    """What a lease says about an answer; all defaults when there was none, or one for another image."""

    late: bool = False
    mismatch: bool = False
    blind: bool = False
    model_version: str | None = None
    arm: str | None = None
    suggestions: tuple[dict[str, object], ...] = ()
    closes: bool = False


class Decisions(Labels):
    """Storing and reading answers, and the labels they amount to."""

    def __init__(self, database: Database, taxonomy: Taxonomy) -> None:
        super().__init__(database, taxonomy.slugs)
        self._taxonomy = taxonomy

    def submit(self, user: User, answer: Answer, *, now: datetime | None = None) -> Stored:
        """Store one answer durably, update the label of its group and close its lease, all in one transaction.

        A late, doubled or mismatched answer is stored and marked. A repeated `client_id` returns what was stored first.

        Raises:
            InputError: the answer is not well-formed, or its `client_id` is another person's.
            NotFoundError: no such image, or it was erased.
            WorkspaceError: the store could not be written; nothing was stored.
        """
        classes = check_answer(answer, self._taxonomy)
        with self._database.write() as connection:
            return self._store(connection, user, answer, classes, now or datetime.now(UTC))

    def submit_many(
        self,
        answers: Sequence[tuple[User, Answer]],
        *,
        now: datetime | None = None,
        given_at: Sequence[datetime] | None = None,
    ) -> list[Stored | AnnotatorError]:
        """Store several answers with one commit; a wrong one becomes its error and leaves the others alone.

        `given_at` says when each was given, for those that were given earlier and elsewhere.

        Raises:
            WorkspaceError: the store could not be written; none was stored.
        """
        moment = now or datetime.now(UTC)
        times = [min(at, moment) for at in given_at] if given_at is not None else [moment] * len(answers)
        outcomes: list[Stored | AnnotatorError] = []
        with self._database.write() as connection:
            for (user, answer), at in zip(answers, times, strict=True):
                try:
                    classes = check_answer(answer, self._taxonomy)
                    with connection.begin_nested():
                        outcomes.append(self._store(connection, user, answer, classes, at))
                except AnnotatorError as error:
                    outcomes.append(error)
        return outcomes

    def undo(self, user: User, client_id: str, annotation_id: int, *, now: datetime | None = None) -> Stored:
        """Take back one of one's own answers; what it superseded stands again.

        Raises:
            InputError: it is another person's, an undo itself, or undone already; or a bad `client_id`.
            NotFoundError: no such annotation.
        """
        check_client_id(client_id)
        with self._database.write() as connection:
            repeated = _repeated(connection, user, client_id)
            if repeated is not None:
                return repeated
            target = _own_annotation(connection, user, annotation_id, "undone")
            undone = self._undo(connection, user, client_id, target, now or datetime.now(UTC), target.source)
            if undone is None:
                raise ConflictError(f"annotation {annotation_id} is undone already")
            return undone

    def store_foreign(self, connection: Connection, incoming: ForeignAnswer, prefix: str, now: datetime) -> Stored:
        """Store an answer of a linked project inside the caller's transaction: what was shown there is its lease.

        It was given at `incoming.at`, or now when that lies ahead. `prefix` is that of its `client_id`.

        Raises:
            InputError: as `submit`.
            NotFoundError: as `submit`.
        """
        answer = replace(incoming.answer, lease_id=None, source=FOREIGN)
        classes = check_answer(answer, self._taxonomy, prefix)
        shown = incoming.shown or Shown()
        lease = _Lease(False, False, shown.blind, shown.model_version, shown.arm, shown.candidates)
        at = min(incoming.at, now)
        return self._store(connection, incoming.user, answer, classes, at, lease, beside=incoming.beside)

    def retract_foreign(
        self, connection: Connection, incoming: ForeignRetraction, prefix: str, now: datetime
    ) -> Stored:
        """Undo an answer and all that it superseded, newest first, inside the caller's transaction.

        Returns the first undo, or, when nothing was left to undo, the answer itself with `created` False.

        Raises:
            InputError: as `undo`.
            NotFoundError: as `undo`.
        """
        user = incoming.user
        check_client_id(f"{incoming.client_id}:0", prefix)
        first = _repeated(connection, user, f"{incoming.client_id}:0")
        if first is not None:
            return first
        chain = [_own_annotation(connection, user, incoming.annotation_id, "undone")]
        while (before := chain[-1].supersedes) is not None:
            chain.append(_own_annotation(connection, user, before, "undone"))
        number = 0
        for target in chain:
            client_id = f"{incoming.client_id}:{number}"
            undone = self._undo(connection, user, client_id, target, min(incoming.at, now), FOREIGN)
            if undone is not None:
                first, number = first or undone, number + 1
        return first or Stored(chain[0], created=False)

    def list(
        self,
        after_seq: int = 0,
        limit: int | None = None,
        row: int | None = None,
        user_id: int | None = None,
        *,
        newest: bool = False,
    ) -> Annotations:
        """Return annotations with `seq` above `after_seq` in commit order (or newest first), undone ones included."""
        query = READ.where(annotations.c.seq > after_seq)
        if row is not None:
            query = query.where(annotations.c.row == row)
        if user_id is not None:
            query = query.where(annotations.c.user_id == user_id)
        query = query.order_by(annotations.c.seq.desc() if newest else annotations.c.seq)
        with self._database.read() as connection:
            return [as_annotation(r) for r in connection.execute(query.limit(limit))]

    def get(self, annotation_id: int) -> Annotation:
        """Return one annotation; `NotFoundError` when there is none of that id."""
        with self._database.read() as connection:
            return _get(connection, annotation_id)

    def count(self, *, people_only: bool = False) -> int:
        """Return how many annotations are stored, undone and imported ones included unless `people_only`."""
        query = select(func.count()).select_from(annotations)
        if people_only:
            query = query.where(annotations.c.user_id.is_not(None))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def _undo(
        self, connection: Connection, user: User, client_id: str, target: Annotation, now: datetime, source: str
    ) -> Stored | None:
        """Append an undo of `target`; None when it is undone already."""
        image = connection.execute(_IMAGE.where(images.c.row == target.row)).one()
        group = opinions_of_group(connection, image.group_row)
        if any(a.kind == "undo" and a.supersedes == target.id for a in group):
            return None
        values = blank_values(user.id, client_id, image.row, now, self._taxonomy.version)
        values |= {"kind": "undo", "classes": [], "supersedes": target.id, "source": source}
        return self._insert(connection, user, values, image.group_row, group, target.image_id)

    def _store(
        self,
        connection: Connection,
        user: User,
        answer: Answer,
        classes: tuple[str, ...],
        now: datetime,
        lease: _Lease | None = None,
        *,
        beside: bool = False,
    ) -> Stored:
        """Store an answer with what its lease says, or with `lease` in its place."""
        repeated = _repeated(connection, user, answer.client_id)
        if repeated is not None:
            return repeated
        image = connection.execute(_IMAGE_BY_ID, {"_image_id": answer.image_id}).one_or_none()
        if image is None:
            raise NotFoundError(f"no image {answer.image_id!r}")
        if image.state == "erased":
            raise NotFoundError(f"image {answer.image_id!r} was erased")
        group = opinions_of_group(connection, image.group_row)
        if answer.supersedes is not None:
            _check_supersedes(connection, user, answer.supersedes, group)
        if lease is None:
            lease = _read_lease(connection, user, answer.lease_id, image.row, now)
        counts = answer.kind in COUNTING
        others = any(a != user.id for a in opinions(group)) if counts and lease.arm != "review" else False
        values = blank_values(user.id, answer.client_id, image.row, now, self._taxonomy.version)
        values |= {
            "kind": answer.kind,
            "classes": list(classes),
            "confidence": answer.confidence,
            "note": answer.note,
            "duration_ms": answer.duration_ms,
            "supersedes": answer.supersedes,
            "source": answer.source,
            "lease_id": answer.lease_id,
            "late": lease.late,
            "duplicate": others,
            "mismatch": lease.mismatch,
            "blind": lease.blind,
            "adjudicates": counts and lease.arm == "review" and user.role in ("reviewer", "admin"),
            "model_version": lease.model_version,
            "arm": lease.arm,
            "suggestions": list(lease.suggestions),
            "beside": beside,
        }
        stored = self._insert(connection, user, values, image.group_row, group, answer.image_id)
        if lease.closes:
            connection.execute(_CLOSE, {"_id": answer.lease_id})
        if counts and lease.blind and lease.arm == "random" and not image.reserved:
            grouping.reserve(connection, image.row)
        return stored

    def _insert(
        self,
        connection: Connection,
        user: User,
        values: dict[str, Any],
        group_row: int,
        group: Sequence[Opinion],
        image_id: str,
    ) -> Stored:
        """Append a row and derive the label of its group with it."""
        seq = meta.take_seqs(connection, 1)
        values |= {"id": seq, "seq": seq}
        connection.execute(_INSERT, values)
        if values["kind"] in COUNTING or values["supersedes"] is not None:
            added = Opinion(
                seq,
                seq,
                user.id,
                values["kind"],
                tuple(values["classes"]),
                values["supersedes"],
                values["adjudicates"],
                None,
                group_row,
                values["beside"],
            )
            put_label(connection, self._database, group_row, derive([*group, added], self._classes))
        fields = {k: v for k, v in values.items() if k != "taxonomy_version"}
        fields |= {"classes": tuple(values["classes"]), "suggestions": tuple(values["suggestions"])}
        return Stored(Annotation(**fields, image_id=image_id, user_name=user.name), created=True)


def _repeated(connection: Connection, user: User, client_id: str) -> Stored | None:
    known = connection.execute(_BY_CLIENT, {"_client_id": client_id}).one_or_none()
    if known is None:
        return None
    if known.user_id != user.id:
        raise ConflictError(f"client_id {client_id!r} belongs to another person's answer: make a new one per answer")
    return Stored(_get(connection, known.id), created=False)


def _get(connection: Connection, annotation_id: int) -> Annotation:
    row = connection.execute(READ.where(annotations.c.id == annotation_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"no annotation {annotation_id}")
    return as_annotation(row)


def _own_annotation(connection: Connection, user: User, annotation_id: int, verb: str) -> Annotation:
    target = _get(connection, annotation_id)
    if target.user_id != user.id:
        raise InputError(f"annotation {annotation_id} is another person's; only one's own can be {verb}")
    if target.kind == "undo":
        raise InputError(f"annotation {annotation_id} is an undo; answer again instead")
    return target


def _check_supersedes(connection: Connection, user: User, annotation_id: int, group: Sequence[Opinion]) -> None:
    _own_annotation(connection, user, annotation_id, "superseded")
    if all(a.id != annotation_id for a in group):
        raise InputError(f"annotation {annotation_id} is about another face; it cannot be superseded by this answer")


def _read_lease(connection: Connection, user: User, lease_id: str | None, row: int, now: datetime) -> _Lease:
    """Compare an answer with the lease it names. A lease that is unknown or another person's gave no right: late."""
    if lease_id is None:
        return _Lease()
    lease = connection.execute(_LEASE, {"_id": lease_id}).one_or_none()
    if lease is None or lease.user_id != user.id:
        return _Lease(late=True)
    late = lease.expires_at <= now
    if lease.closed and not late:
        taken = select(leases.c.id).where(
            leases.c.row == lease.row, leases.c.user_id != user.id, leases.c.expires_at > lease.expires_at
        )
        late = connection.execute(taken.limit(1)).scalar() is not None
    if lease.row != row:
        return _Lease(late=late, mismatch=True)
    return _Lease(
        late, False, lease.blind, lease.model_version, lease.arm, tuple(lease.candidates), closes=not lease.closed
    )


def as_annotation(row: Any) -> Annotation:
    """Return the annotation in a row of `READ`."""
    fields = row._asdict()
    del fields["taxonomy_version"]
    fields["classes"] = tuple(row.classes)
    fields["suggestions"] = tuple(row.suggestions)
    fields["user_name"] = row.user_name or row.source
    return Annotation(**fields)
