"""Samples: sources, rows, duplicate groups and splits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, case, func, insert, select, update

from annotator.errors import InputError, NotFoundError
from annotator.records import ImageRecord, ImageState, NewImage, Split
from annotator.store import given, grouping, meta
from annotator.store.database import Database
from annotator.store.faces import face_rows
from annotator.store.labels import refresh_labels
from annotator.store.tables import annotations, faces, images, labels, sources

GivenAs = Literal["annotations", "truth", "none"]
SPLITS: tuple[Split, ...] = ("pool", "val", "test")
STATES: tuple[ImageState, ...] = ("active", "quarantined", "leak", "erased")
RECORD = tuple(
    images.c[name]
    for name in (
        "row",
        "image_id",
        "source_id",
        "path",
        "crop",
        "split",
        "state",
        "group_row",
        "content_hash",
        "width",
        "height",
        "media_type",
        "subject_id",
        "quarantine_reason",
    )
)
_CHUNK = 500  # values in one IN list


@dataclass(frozen=True, slots=True)
class Source:
    """A registered folder or zip; `ImageRecord.path` is relative to `root`."""

    id: int
    root: str
    kind: str
    format: str


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What the store knows of a file from an earlier import; equal bytes and stamp mean it need not be read again."""

    row: int
    file_bytes: int
    file_stamp: int
    content_hash: str | None
    state: ImageState


@dataclass(frozen=True, slots=True)
class Truth:
    """The given label of a sample: for reporting, never trained on."""

    row: int
    image_id: str
    truth: str
    votes: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class PoolTable:
    """Every sample as columns of length N, ascending by row. `split` and `state` index `SPLITS` and `STATES`."""

    rows: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    split: npt.NDArray[np.uint8]
    state: npt.NDArray[np.uint8]
    reserved: npt.NDArray[np.bool_]


class Images:
    """The samples of a workspace."""

    def __init__(self, database: Database, classes: Sequence[str], taxonomy_version: int) -> None:
        self._database = database
        self._classes = tuple(classes)
        self._taxonomy_version = taxonomy_version

    def register_source(self, root: str, kind: Literal["folder", "zip"], format: str) -> int:
        """Return the id of the source at `root`, registered when it is new. A known root keeps its first kind."""
        query = select(sources.c.id).where(sources.c.root == root)
        with self._database.write() as connection:
            known = connection.execute(query).scalar()
            if known is None:
                values = {"root": root, "kind": kind, "format": format, "registered_at": datetime.now(UTC)}
                connection.execute(insert(sources).values(values))
                known = connection.execute(query).scalar_one()
        return int(known)

    def source(self, source_id: int) -> Source:
        """Return a source; `NotFoundError` when there is none of that id."""
        with self._database.read() as connection:
            return _source(connection, source_id)

    def sources(self) -> list[Source]:
        """Return every source in the order of registration."""
        with self._database.read() as connection:
            rows = connection.execute(select(sources).order_by(sources.c.id)).all()
        return [Source(r.id, r.root, r.kind, r.format) for r in rows]

    def known_files(self, source_id: int) -> dict[tuple[str, str], KnownFile]:
        """Return the newest row of every (path, crop) of a source."""
        query = (
            select(
                images.c.path,
                images.c.crop,
                images.c.row,
                images.c.file_bytes,
                images.c.file_stamp,
                images.c.content_hash,
                images.c.state,
            )
            .where(images.c.source_id == source_id, images.c.state != "erased")
            .order_by(images.c.row)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {(r[0], r[1]): KnownFile(*r[2:]) for r in rows}

    def add(self, source_id: int, new: Sequence[NewImage], given_as: GivenAs) -> list[ImageRecord]:
        """Store samples on consecutive rows in one transaction and return them in the order given.

        A sample that is there already (same source, path, crop and content) is returned as it is; one that was erased
        stays erased and its tombstone is returned. Other writers wait meanwhile: batches of about 100 keep them under
        10 ms, 500 under 25 ms.

        Copies (equal `content_hash`) share a group whose representative is its lowest row of the strongest split: pool
        beats val beats test. Copies in a weaker split become state "leak", also when they came first.

        Args:
            source_id: from `register_source`.
            new: what the importer found; split and state as it sees them.
            given_as: "truth" keeps given labels and votes for reporting; "annotations" also makes them answers of an
                import source, for pool images; "none" drops them.

        Raises:
            TaxonomyError: a given label or vote names an unknown class.
            NotFoundError: no such source.
        """
        for item in new:
            given.check(item, self._classes)
        with self._database.write() as connection:
            _source(connection, source_id)
            found = grouping.find_existing(connection, source_id, new)
            fresh = _first_of_each(new, found)
            start = meta.take_rows(connection, len(fresh))
            values = [
                _values(source_id, start + offset, item, given_as, self._classes) for offset, item in enumerate(fresh)
            ]
            moved = grouping.assign(connection, values)
            grouping.reserve_with_photo(connection, values)
            if values:
                connection.execute(insert(images), values)
            known_faces = face_rows(fresh, values)
            if known_faces:
                connection.execute(insert(faces), known_faces)
            groups = moved.regrouped
            if given_as == "annotations":
                groups = groups | self._annotate(connection, fresh, values)
            if groups:
                refresh_labels(connection, self._database, groups, self._classes)
            for item, value in zip(fresh, values, strict=True):
                found[grouping.identity(item)] = int(value["row"])
            wanted = [found[grouping.identity(item)] for item in new]
            records = {r.row: r for r in _records(connection, wanted)} if len(fresh) < len(new) else {}
        made = {int(v["row"]): _as_record(v) for v in values}
        return [records.get(row) or made[row] for row in wanted]

    def quarantine(self, row: int, reason: str) -> None:
        """Take an image out of everything because it cannot be used; its group goes on without it."""
        with self._database.write() as connection:
            known = connection.execute(
                select(images.c.content_hash, images.c.group_row).where(images.c.row == row)
            ).one_or_none()
            if known is None:
                raise NotFoundError(f"no image on row {row}")
            changes = {"state": "quarantined", "quarantine_reason": reason}
            connection.execute(update(images).where(images.c.row == row).values(changes))
            groups = grouping.regroup(connection, known.content_hash) | {known.group_row}
            refresh_labels(connection, self._database, groups, self._classes)

    def refresh(self, row: int, file_bytes: int, file_stamp: int, restorable: Sequence[str] = ()) -> None:
        """Note that the file of `row` holds the same picture under a new stamp.

        A sample quarantined for one of the reasons in `restorable` is active again. `NotFoundError` without such a row.
        """
        with self._database.write() as connection:
            query = select(images.c.content_hash, images.c.state, images.c.quarantine_reason, images.c.group_row)
            known = connection.execute(query.where(images.c.row == row)).one_or_none()
            if known is None:
                raise NotFoundError(f"no image on row {row}")
            changes: dict[str, Any] = {"file_bytes": file_bytes, "file_stamp": file_stamp}
            back = known.state == "quarantined" and known.quarantine_reason in restorable
            if back and known.content_hash is not None:
                changes |= {"state": "active", "quarantine_reason": None}
            connection.execute(update(images).where(images.c.row == row).values(changes))
            if "state" in changes:
                groups = grouping.regroup(connection, known.content_hash) | {known.group_row}
                refresh_labels(connection, self._database, groups, self._classes)

    def by_id(self, image_id: str) -> ImageRecord:
        """Return the image of a public id; `NotFoundError` when there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(*RECORD).where(images.c.image_id == image_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"no image {image_id!r}")
        return ImageRecord(*row)

    def by_rows(self, rows: Sequence[int]) -> list[ImageRecord]:
        """Return the images of `rows`, in that order; `NotFoundError` names the first row that has none."""
        with self._database.read() as connection:
            found = {r.row: r for r in _records(connection, rows)}
        for row in rows:
            if int(row) not in found:
                raise NotFoundError(f"no image on row {row}")
        return [found[int(row)] for row in rows]

    def locate(self, row: int) -> tuple[Source, ImageRecord]:
        """Return where the original file of a row is."""
        with self._database.read() as connection:
            found = _records(connection, [row])
            if not found:
                raise NotFoundError(f"no image on row {row}")
            return _source(connection, found[0].source_id), found[0]

    def members(self, row: int) -> list[ImageRecord]:
        """Return the images of the group that `row` belongs to, itself included, ascending by row."""
        group = select(images.c.group_row).where(images.c.row == row).scalar_subquery()
        with self._database.read() as connection:
            query = select(*RECORD).where(images.c.group_row == group).order_by(images.c.row)
            found = connection.execute(query).all()
        if not found:
            raise NotFoundError(f"no image on row {row}")
        return [ImageRecord(*r) for r in found]

    def table(self, since_row: int = 0) -> PoolTable:
        """Return every sample from `since_row` on as numpy columns, by one SELECT."""
        query = (
            select(
                images.c.row,
                images.c.group_row,
                case({name: code for code, name in enumerate(SPLITS)}, value=images.c.split),
                case({name: code for code, name in enumerate(STATES)}, value=images.c.state),
                images.c.reserved,
            )
            .where(images.c.row >= since_row)
            .order_by(images.c.row)
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        columns = np.array([tuple(r) for r in found], dtype=np.int64).reshape(-1, 5).T
        rows, group, split, state, reserved = columns
        return PoolTable(
            rows.copy(), group.copy(), split.astype(np.uint8), state.astype(np.uint8), reserved.astype(np.bool_)
        )

    def truth(self, split: Split) -> list[Truth]:
        """Return the given labels of the active images of a split, ascending by row."""
        query = (
            select(images.c.row, images.c.image_id, images.c.truth, images.c.truth_votes)
            .where(images.c.split == split, images.c.state == "active", images.c.truth.is_not(None))
            .order_by(images.c.row)
        )
        with self._database.read() as connection:
            return [Truth(*r) for r in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """Return how many samples are where.

        `pool`, `val`, `test`: active ones. With `quarantined` and `leak` they sum to the samples imported and not
        erased. `duplicate_groups`: contents that occur more than once. `reserved`: pool faces kept for validation.
        """
        many = (
            select(images.c.group_row)
            .where(images.c.content_hash.is_not(None))
            .group_by(images.c.group_row)
            .having(func.count() > 1)
            .subquery()
        )
        with self._database.read() as connection:
            by_place = connection.execute(
                select(images.c.split, images.c.state, func.count()).group_by(images.c.split, images.c.state)
            ).all()
            groups = connection.execute(select(func.count()).select_from(many)).scalar_one()
            reserved = connection.execute(
                select(func.count()).where(images.c.reserved, images.c.state == "active")
            ).scalar_one()
        counts: dict[str, int] = dict.fromkeys((*SPLITS, *STATES[1:]), 0)
        for split, state, number in by_place:
            counts[split if state == "active" else state] += number
        return {**counts, "duplicate_groups": groups, "reserved": reserved}

    def _annotate(self, connection: Connection, fresh: Sequence[NewImage], values: list[dict[str, Any]]) -> set[int]:
        """Store what came with new pool images as answers of the import; return the groups concerned.

        New groups get their label here, in bulk; groups that had annotations already are returned for derivation.
        """
        rows = given.import_annotations(fresh, values, self._classes, self._taxonomy_version)
        if not rows:
            return set()
        first = meta.take_seqs(connection, len(rows))
        for offset, row in enumerate(rows):
            row["id"] = row["seq"] = first + offset
        connection.execute(insert(annotations), rows)
        group_of = {v["row"]: v["group_row"] for v in values}
        lone, shared = given.split_lone(rows, group_of)
        made = given.lone_labels(lone, self._classes)
        if made:
            connection.execute(insert(labels), made)
        return shared


def _source(connection: Connection, source_id: int) -> Source:
    row = connection.execute(select(sources).where(sources.c.id == source_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"no source {source_id}")
    return Source(row.id, row.root, row.kind, row.format)


def _records(connection: Connection, rows: Sequence[int]) -> list[ImageRecord]:
    wanted = sorted({int(r) for r in rows})
    found: list[ImageRecord] = []
    for start in range(0, len(wanted), _CHUNK):
        query = select(*RECORD).where(images.c.row.in_(wanted[start : start + _CHUNK])).order_by(images.c.row)
        found += [ImageRecord(*r) for r in connection.execute(query)]
    return found


def _first_of_each(new: Sequence[NewImage], found: dict[grouping.Identity, int]) -> list[NewImage]:
    fresh: dict[grouping.Identity, NewImage] = {}
    for item in new:
        key = grouping.identity(item)
        if key not in found:
            fresh.setdefault(key, item)
    return list(fresh.values())


def _values(source_id: int, row: int, item: NewImage, given_as: GivenAs, classes: Sequence[str]) -> dict[str, Any]:
    if item.split not in SPLITS or item.state not in ("active", "quarantined"):
        raise InputError(f"{item.path}: split {item.split!r} or state {item.state!r} is not one an import may give")
    truth, votes = given.truth_of(item, classes) if given_as != "none" else (None, None)
    return {
        "row": row,
        "image_id": f"im{secrets.token_hex(10)}",
        "source_id": source_id,
        "path": item.path,
        "crop": item.crop,
        "content_hash": item.content_hash if item.state == "active" else None,
        "group_row": row,
        "split": item.split,
        "state": item.state,
        "quarantine_reason": item.quarantine_reason,
        "subject_id": item.subject_id,
        "width": item.width,
        "height": item.height,
        "media_type": item.media_type,
        "file_bytes": item.file_bytes,
        "file_stamp": item.file_stamp,
        "truth": truth,
        "truth_votes": votes,
        "reserved": False,
    }


def _as_record(values: dict[str, Any]) -> ImageRecord:
    return ImageRecord(*(values[column.name] for column in RECORD))
