"""A CSV or JSONL list of images with whatever is known of them.

Columns (or JSON keys): `path`; optional `label`, `split`, `subject_id`, `crop` ("left,top,width,height" or a list), a
count per class in a column named by the class, or `votes` as a JSON object. For `--faces given`: `box`
("left,top,width,height" of the face, or a list) and `landmarks` (ten numbers: x, y of the eye on the left of the
picture, the other eye, nose tip, and the mouth corners, left one first).
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from annotator.errors import ImportSourceError
from annotator.ingest.crops import Crop, parse_crop
from annotator.ingest.samples import (
    KNOWN_SLUGS,
    UNUSABLE,
    ClassNames,
    Findings,
    Sample,
    plurality,
    read_csv,
    read_jsonl,
    split_of,
    whole_number,
)
from annotator.ingest.sources import SourceFiles
from annotator.records import NUM_LANDMARKS, Face

_FAR = 1_000_000  # pixels
_COLUMNS = ("path", "label", "split", "subject_id", "crop", "votes", "box", "landmarks")


class Manifest:
    """The images that a list names, paths relative to the list."""

    format = "manifest"

    def __init__(self, files: SourceFiles, path: str, names: ClassNames) -> None:
        self.findings = Findings()
        self._files, self._path, self._names = files, path, names
        self._count = 0
        ignored: set[str] = set()
        for where, row in self._rows():
            self._sample(where, row)
            ignored.update(k for k in row if k not in _COLUMNS and not self._is_vote(k))
            self._count += 1
        if ignored:
            self.findings.notes.append(f"columns not used: {', '.join(sorted(ignored))}")
        if not self._count:
            raise ImportSourceError(f"{files.root}: {path} lists no images")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def samples(self) -> Iterator[Sample]:
        """Yield the rows in their order."""
        for where, row in self._rows():
            yield self._sample(where, row)

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self._path.lower().endswith((".jsonl", ".ndjson")):
            return read_jsonl(self._files, self._path)
        return read_csv(self._files, self._path)

    def _is_vote(self, column: str) -> bool:
        return column in KNOWN_SLUGS or column == UNUSABLE or self._names.find(column) == column

    def _sample(self, where: str, row: Mapping[str, Any]) -> Sample:
        path = row.get("path")
        if not isinstance(path, str) or not path.strip():
            raise ImportSourceError(f"{where}: no `path`; the list needs a column `path`")
        label = _text(row, "label", where)
        split = _text(row, "split", where)
        votes = self._votes(where, row)
        given = self._names.slug(label, where) if label else (plurality(votes) if votes else None)
        return Sample(
            path=path.strip(),
            split=split_of(split, where) if split else "pool",
            given=given,
            votes=votes,
            subject_id=_text(row, "subject_id", where) or None,
            crop=_crop(row.get("crop"), where),
            face=_face(row, where),
        )

    def _votes(self, where: str, row: Mapping[str, Any]) -> dict[str, int] | None:
        counts = {k: whole_number(str(v), f"the count of {k!r}", where) for k, v in row.items() if self._is_vote(k)}
        given = row.get("votes")
        if given:
            if isinstance(given, str):
                try:
                    given = json.loads(given)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ImportSourceError(f"{where}: `votes` is not a JSON object: {error}") from error
            if not isinstance(given, dict):
                raise ImportSourceError(f"{where}: `votes` is not an object of class to count")
            counts |= {str(k): whole_number(str(v), f"the count of {k!r}", where) for k, v in given.items()}
        return self._names.votes(counts, where) if counts else None


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, dict | list | bool):
        raise ImportSourceError(f"{where}: `{key}` is {value!r}, not text")
    return str(value).strip()


def _face(row: Mapping[str, Any], where: str) -> Face | None:
    box = _numbers(row.get("box"), "box", 4, where)
    points = _numbers(row.get("landmarks"), "landmarks", 2 * NUM_LANDMARKS, where)
    if box is None:
        if points is not None:
            raise ImportSourceError(f"{where}: `landmarks` without a `box`")
        return None
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise ImportSourceError(f"{where}: box {row.get('box')!r} has no positive width and height")
    pairs = None if points is None else tuple(zip(points[::2], points[1::2], strict=True))
    return Face((left, top, width, height), landmarks=pairs)


def _numbers(value: object, key: str, count: int, where: str) -> list[float] | None:
    if value is None or value == "":
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        numbers = [float(p) for p in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(n) and abs(n) < _FAR for n in numbers):
        raise ImportSourceError(f"{where}: `{key}` is {value!r}, not {count} numbers of pixels")
    return numbers


def _crop(value: object, where: str) -> Crop | None:
    if value is None or value == "":
        return None
    text = ",".join(str(v) for v in value) if isinstance(value, list) else str(value)
    try:
        return parse_crop(text)
    except ValueError as error:
        raise ImportSourceError(f"{where}: {error}") from error
