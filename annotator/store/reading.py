"""Everything about every face, streamed from one moment of the store: what exports are made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from sqlalchemy import Connection, exists, func, select

from annotator.consensus import tally, voices
from annotator.records import Annotation, ImageRecord, KnownFace, Label
from annotator.store.database import Database
from annotator.store.decisions import READ, as_annotation
from annotator.store.faces import FACE, as_face
from annotator.store.images import RECORD, Source
from annotator.store.labels import LABEL_COLUMNS, as_label, opinions_by_group
from annotator.store.tables import annotations, faces, images, labels, sources

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Said:
    """An annotation, and whether it still stands: neither undone nor superseded, and no undo itself."""

    annotation: Annotation
    stands: bool


@dataclass(frozen=True, slots=True)
class Face:
    """One sample with its label (that of its group) and what was said about this very sample."""

    image: ImageRecord
    source: Source
    label: Label
    truth: str | None
    truth_votes: dict[str, int] | None
    reserved: bool
    said: tuple[Said, ...]
    known: KnownFace | None = None


class Moment:
    """One read transaction: everything read through it belongs to the same state of the store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        superseding = select(annotations.c.id, annotations.c.kind, annotations.c.supersedes).where(
            annotations.c.supersedes.is_not(None)
        )
        rows = connection.execute(superseding).all()
        undone = {r.supersedes for r in rows if r.kind == "undo"}
        self._fallen = undone | {r.supersedes for r in rows if r.kind != "undo" and r.id not in undone}

    def count(self) -> int:
        """Return how many faces are active."""
        query = select(func.count()).select_from(images).where(images.c.state == "active")
        return int(self._connection.execute(query).scalar_one())

    def faces(self) -> Iterator[Face]:
        """Yield, ascending by row, every active face and every other one that somebody has answered."""
        known = {r.id: Source(*r) for r in self._connection.execute(_SOURCES)}
        answered = exists().where(annotations.c.row == images.c.row)
        query = (
            select(*RECORD, images.c.truth, images.c.truth_votes, images.c.reserved, *FACE, *LABEL_COLUMNS)
            .outerjoin(faces, faces.c.row == images.c.row)
            .outerjoin(labels, labels.c.row == images.c.group_row)
            .where((images.c.state == "active") | answered)
            .order_by(images.c.row)
        )
        said = groupby(self.said(), key=lambda s: s.annotation.row)
        ahead = next(said, None)
        width = len(RECORD)
        for row in self._stream(query):
            image = ImageRecord(*row[:width])
            own: tuple[Said, ...] = ()
            if ahead is not None and ahead[0] == image.row:
                own, ahead = tuple(ahead[1]), next(said, None)
            truth, votes, reserved = row[width : width + 3]
            said_of_face, said_label = row[width + 3 : width + 3 + len(FACE)], row[width + 3 + len(FACE) :]
            label = Label("unlabeled") if said_label[0] is None else as_label(said_label)
            yield Face(image, known[image.source_id], label, truth, votes, reserved, own, as_face(said_of_face))

    def said(self) -> Iterator[Said]:
        """Yield every annotation, by row and then in commit order."""
        for row in self._stream(READ.order_by(annotations.c.row, annotations.c.seq)):
            annotation = as_annotation(row)
            yield Said(annotation, annotation.kind != "undo" and annotation.id not in self._fallen)

    def votes(self) -> dict[int, dict[str, int]]:
        """Return what stands as votes by group: people's latest answers, or the import's where nobody answered.

        Each class of a candidate set gets a vote; "not" answers cannot be said in votes and are left out.
        """
        found = {}
        for group, said in opinions_by_group(self._connection).items():
            standing = [a for a in said if a.id not in self._fallen and a.kind in ("label", "candidates", "unusable")]
            people = voices(sorted(standing, key=lambda a: a.seq))
            cast: dict[str, int] = {}
            for answer in chain.from_iterable(people.values()):
                for name in answer.classes or ("unusable",):
                    cast[name] = cast.get(name, 0) + 1
            if not people:
                cast = {name: round(count) for name, count in tally(standing).items() if count >= 1}
            if cast:
                found[group] = cast
        return found

    def _stream(self, query: Any) -> Iterator[Any]:
        return iter(self._connection.execute(query.execution_options(yield_per=_BATCH)))


@contextmanager
def moment(database: Database) -> Iterator[Moment]:
    """Open one consistent reading of the store."""
    with database.read() as connection:
        yield Moment(connection)


_SOURCES = select(sources.c.id, sources.c.root, sources.c.kind, sources.c.format)
