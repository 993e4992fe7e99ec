"""The one audited path past the append-only rule: an image, its copies and all that was said about them go."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, func, insert, select, update

from annotator.errors import NotFoundError
from annotator.store import exchange_health, meta
from annotator.store.database import Database
from annotator.store.grouping import tombstone_keys
from annotator.store.tables import annotations, erasures, faces, images, labels, leases, sources
from annotator.store.tables import meta as meta_table

_CLEARED = {
    "path": "",
    "crop": "",
    "content_hash": None,
    "state": "erased",
    "quarantine_reason": None,
    "subject_id": None,
    "width": 0,
    "height": 0,
    "media_type": "",
    "file_bytes": 0,
    "file_stamp": 0,
    "truth": None,
    "truth_votes": None,
    "reserved": False,
}


@dataclass(frozen=True, slots=True)
class Erased:
    """What went from the database. `originals` name the source files, which are the owner's to delete."""

    rows: tuple[int, ...]
    image_ids: tuple[str, ...]
    num_annotations: int
    originals: tuple[str, ...]


class Erasing:
    """Erasing images and remembering that they were."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rows_of_image(self, image_id: str) -> list[int]:
        """Return the rows of an image and its copies; `NotFoundError` when there is no such image."""
        group = select(images.c.group_row).where(images.c.image_id == image_id).scalar_subquery()
        return self._rows(images.c.group_row == group, f"image {image_id!r}")

    def rows_of_subject(self, subject_id: str) -> list[int]:
        """Return the rows of every image of a subject, copies included; `NotFoundError` when there is none."""
        groups = select(images.c.group_row).where(images.c.subject_id == subject_id)
        return self._rows(images.c.group_row.in_(groups), f"subject {subject_id!r}")

    def erase(self, rows: Sequence[int], reason: str) -> Erased:
        """Remove the answers, labels and particulars of `rows` and leave a tombstone for each.

        A one-way hash of file and content stays, so that a later import does not bring the images back. Rows that were
        erased before are left as they are.
        """
        now = datetime.now(UTC)
        ids, originals, num_annotations, erased = [], [], 0, []
        with self._database.write() as connection:
            for row in rows:
                image = connection.execute(
                    select(images, sources.c.root).join(sources).where(images.c.row == row)
                ).one()
                ids.append(image.image_id)
                if image.state == "erased":
                    continue
                erased.append(row)
                originals.append(f"{image.root}/{image.path}" + (f" [{image.crop}]" if image.crop else ""))
                keys = tombstone_keys(image.source_id, image.path, image.crop, image.content_hash)
                for key in keys:
                    connection.execute(delete(meta_table).where(meta_table.c.key == key))
                    connection.execute(insert(meta_table).values(key=key, value=str(row)))
                values = {"row": row, "image_id": image.image_id, "reason": reason, "erased_at": now}
                connection.execute(insert(erasures).values(values))
            if erased:
                num_annotations = _forget(connection, erased)
                exchange_health.forget(connection, erased)
        return Erased(tuple(int(r) for r in rows), tuple(ids), num_annotations, tuple(originals))

    def tombstones(self) -> list[int]:
        """Return the rows of every erased image, ascending."""
        with self._database.read() as connection:
            return list(connection.execute(select(erasures.c.row).order_by(erasures.c.row)).scalars())

    def overwrite_free_space(self) -> None:
        """Rewrite a SQLite file so that nothing erased lingers in its free pages or its write-ahead log.

        PostgreSQL reuses its pages by itself (autovacuum), nothing is done there.
        """
        if self._database.path is None:
            return
        with self._database.write():
            pass  # waits until other writers are done, so that VACUUM does not meet one of this process
        with closing(sqlite3.connect(self._database.path, timeout=30)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _rows(self, condition: object, name: str) -> list[int]:
        query = select(images.c.row).where(condition).order_by(images.c.row)  # type: ignore[arg-type]
        with self._database.read() as connection:
            rows = list(connection.execute(query).scalars())
        if not rows:
            raise NotFoundError(f"no {name}")
        return rows


def _forget(connection: Connection, rows: Sequence[int]) -> int:
    """Delete what hangs on `rows`; return how many annotations there were."""
    said = annotations.c.row.in_(rows)
    num_annotations = int(connection.execute(select(func.count()).select_from(annotations).where(said)).scalar_one())
    connection.execute(delete(annotations).where(said))
    groups = select(images.c.group_row).where(images.c.row.in_(rows))
    connection.execute(delete(labels).where(labels.c.row.in_(groups)))
    connection.execute(delete(leases).where(leases.c.row.in_(rows)))
    connection.execute(delete(faces).where(faces.c.row.in_(rows)))
    connection.execute(update(images).where(images.c.row.in_(rows)).values(**_CLEARED, group_row=images.c.row))
    meta.count_erased(connection, num_annotations)
    return num_annotations
