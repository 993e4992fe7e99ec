"""The columns of an export.

Faces: `split` is pool, val or test; `reserved` marks pool faces kept for validation, which must not be trained on.
`group` is shared by copies of one picture. `state` says what `label` and the shares mean:

* labeled: `label` is the class, its share is 1;
* partial: `label` is empty, `candidates` are the classes left, with equal shares;
* disputed: `label` is empty, `candidates` are the classes that people claimed, the shares are those of their votes;
* unusable, unlabeled: no label, no shares.

`locked`: a reviewer settled it. `num_annotators`: people whose answers count (0 for an imported label, `imported`).
`given`: the label that came with the image. `box` and `landmarks`: where the face is in the upright image, as a
manifest has them; `flags`: what makes it hard to read (small, blurred, turned); empty where no face was looked for.
Faces of one photo have its `source` and `path`. Answers: one row per annotation, taken back ones included; those with
`stands` count. `beside`: it does not replace the same person's other answer, given at once in a linked tool.
"""

import json
from collections.abc import Sequence
from typing import Any

from annotator.records import KnownFace, Label
from annotator.store.reading import Face, Said

FACE_COLUMNS = (
    "image_id",
    "path",
    "source",
    "crop",
    "split",
    "reserved",
    "group",
    "subject_id",
    "state",
    "label",
    "candidates",
    "num_annotators",
    "locked",
    "imported",
    "given",
    "box",
    "landmarks",
    "flags",
)
ANSWER_COLUMNS = (
    "annotation_id",
    "image_id",
    "path",
    "user",
    "kind",
    "classes",
    "confidence",
    "note",
    "duration_ms",
    "created_at",
    "supersedes",
    "stands",
    "late",
    "duplicate",
    "mismatch",
    "blind",
    "adjudicates",
    "beside",
    "arm",
    "model_version",
    "suggestions",
    "votes",
    "source",
    "client_id",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shares(label: Label) -> dict[str, float]:
    """Return the share of every class that has one; they sum to one, or there are none."""
    if label.state == "disputed":
        return label.soft
    return {c: 1 / len(label.classes) for c in label.classes}


def face_row(face: Face) -> dict[str, Any]:
    """Return the columns of a face, `candidates` as a list."""
    image, label = face.image, face.label
    return {
        "image_id": image.image_id,
        "path": image.path,
        "source": face.source.root,
        "crop": image.crop,
        "split": image.split,
        "reserved": face.reserved,
        "group": image.group,
        "subject_id": image.subject_id,
        "state": label.state,
        "label": label.classes[0] if label.state == "labeled" else None,
        "candidates": list(label.classes),
        "num_annotators": label.num_annotators,
        "locked": label.locked,
        "imported": label.imported,
        "given": face.truth,
        **_face_columns(face.known),
    }


def _face_columns(known: KnownFace | None) -> dict[str, Any]:
    if known is None:
        return {"box": None, "landmarks": None, "flags": []}
    points = known.face.landmarks
    return {
        "box": ",".join(f"{v:g}" for v in known.face.box),
        "landmarks": None if points is None else ",".join(f"{v:g}" for point in points for v in point),
        "flags": list(known.flags),
    }


def answer_row(said: Said, path: str) -> dict[str, Any]:
    """Return the columns of an answer; `classes`, `suggestions` and `votes` as they are."""
    a = said.annotation
    return {
        "annotation_id": a.id,
        "image_id": a.image_id,
        "path": path,
        "user": a.user_name,
        "kind": a.kind,
        "classes": list(a.classes),
        "confidence": a.confidence,
        "note": a.note,
        "duration_ms": a.duration_ms,
        "created_at": a.created_at.isoformat(),
        "supersedes": a.supersedes,
        "stands": said.stands,
        "late": a.late,
        "duplicate": a.duplicate,
        "mismatch": a.mismatch,
        "blind": a.blind,
        "adjudicates": a.adjudicates,
        "beside": a.beside,
        "arm": a.arm,
        "model_version": a.model_version,
        "suggestions": list(a.suggestions),
        "votes": a.votes,
        "source": a.source,
        "client_id": a.client_id,
    }


def csv_row(row: dict[str, Any], columns: Sequence[str]) -> list[object]:
    """Return the cells of a row: lists joined by "|", objects as JSON, truth as true/false, nothing as an empty cell.

    A spreadsheet takes a text that begins with =, +, - or @ for a formula: such text gets an apostrophe in front, such
    a path "./", which names the same file.
    """
    return [_cell(name, row[name]) for name in columns]


def _cell(name: str, value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict) or name == "suggestions":
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "|".join(str(v) for v in value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"./{value}" if name == "path" else f"'{value}"
    return value
