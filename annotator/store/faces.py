"""Where the faces of samples are in their images."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select

from annotator.records import FACE_FLAGS, Face, KnownFace, NewImage
from annotator.store.database import Database
from annotator.store.tables import faces, images

FACE = tuple(c for c in faces.c if c.name != "row")
"""The columns that `as_face` reads."""


class Faces:
    """What is known of the faces of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def squares(self) -> list[tuple[int, str, tuple[float, float, float, float]]]:
        """Return row, crop and box (left, top, width, height in pixels of the image) of every known active face."""
        query = (
            select(faces.c.row, images.c.crop, faces.c.x, faces.c.y, faces.c.width, faces.c.height)
            .join_from(faces, images, images.c.row == faces.c.row)
            .where(images.c.state == "active")
            .order_by(faces.c.row)
        )
        with self._database.read() as connection:
            return [(row, crop, (x, y, w, h)) for row, crop, x, y, w, h in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """Return how many active samples have a `known` face, and how many of these faces have which flag."""
        flagged = [func.count().filter(faces.c[name].is_(True)) for name in FACE_FLAGS]
        query = (
            select(func.count(), *flagged)
            .join_from(faces, images, images.c.row == faces.c.row)
            .where(images.c.state == "active")
        )
        with self._database.read() as connection:
            found = connection.execute(query).one()
        return dict(zip(("known", *FACE_FLAGS), map(int, found), strict=True))


def face_rows(new: Sequence[NewImage], values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `faces` for samples just stored as `values`."""
    made = []
    for item, value in zip(new, values, strict=True):
        known = item.face
        if known is None or item.state != "active":
            continue
        left, top, width, height = known.face.box
        points = known.face.landmarks
        made.append(
            {
                "row": value["row"],
                "x": left,
                "y": top,
                "width": width,
                "height": height,
                "score": known.face.score,
                "landmarks": None if points is None else [list(point) for point in points],
                "found_by": known.found_by,
                "small": known.small,
                "blurred": known.blurred,
                "turned": known.turned,
            }
        )
    return made


def as_face(row: Sequence[Any]) -> KnownFace | None:
    """Return the face in the columns `FACE`, None where an outer join found none."""
    x, y, width, height, score, landmarks, found_by, small, blurred, turned = row
    if found_by is None:
        return None
    points = None if landmarks is None else tuple((float(a), float(b)) for a, b in landmarks)
    return KnownFace(Face((x, y, width, height), score, points), found_by, small, blurred, turned)
