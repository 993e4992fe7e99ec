"""Label Studio's JSON without a server: every face as a task, with what people and the model say about it.

A project takes the file in by "Import", once it has the labeling configuration that lies beside it. A task's data:

* image: a link to the file, for Label Studio's local file serving (`?d=` is relative to
  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT where that is set, else to /). A face from a zip or a cut one has no file of
  its own and is in the task as it is;
* image_id, path, crop: which face of this workspace it is, and where it came from; split: pool, val or test;
* reason: why the queue asks for it.

Annotations are the answers that stand, under the person's email address in a linked project or a name that is one;
Label Studio takes the file only when it knows these people. Everybody's name is in `annotator`, too.
"""

import base64
import io
import json
import os
from collections.abc import Mapping as Pairs
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from annotator.errors import NotFoundError
from annotator.export.pictures import Pictures
from annotator.export.tables import complete
from annotator.export.write import Progress, reported
from annotator.labelstudio.config.controls import Mapping
from annotator.labelstudio.config.generated import generate, own_mapping
from annotator.labelstudio.config.results import Said, prediction, to_result
from annotator.order import FaceOrder
from annotator.records import Annotation
from annotator.scores import Scores, ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.reading import Face, moment
from annotator.taxonomy import Taxonomy

DOCUMENT_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
LINK = "/data/local-files/?d="
_LARGEST_INSIDE = 200_000
_SIDE_INSIDE = 512
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp"}
_TRIES = 5


def config_path(out: Path) -> Path:
    """Return where the labeling configuration of an export goes: labels.json, labels.config.xml."""
    return out.with_name(f"{out.stem}.config.xml")


def export_tasks(workspace: Workspace, store: LabelStore, out: Path, progress: Progress | None = None) -> int:
    """Write every active face as a task to `out`, the configuration beside it, and return how many tasks there are.

    Everything people said belongs to one moment of the store. The files appear only when they are complete.

    Raises:
        InputError: `out` is taken or in no folder.
        WorkspaceError: it cannot be written, or the disk is full; nothing is left behind.
    """
    taxonomy = workspace.settings.taxonomy
    count = 0
    with ExitStack() as stack:
        beside = stack.enter_context(complete(config_path(out)))
        beside.write_text(generate(taxonomy), encoding="utf-8")
        path = stack.enter_context(complete(out))
        made = _Tasks(workspace, store)
        stack.callback(made.close)
        now = stack.enter_context(moment(store.database))
        file = stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
        for face in reported(now.faces(), now.count(), progress):
            if face.image.state == "active":
                file.write(",\n" if count else "[\n")
                json.dump(made.task(face), file, ensure_ascii=False)
                count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


class _Tasks:
    """Makes tasks of faces. Close it after use."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._taxonomy: Taxonomy = workspace.settings.taxonomy
        self._mapping: Mapping = own_mapping(self._taxonomy)
        self._pictures = Pictures(workspace)
        self._order = FaceOrder.build(_current_scores(workspace, store), np.zeros(0, dtype=np.int64))
        self._places = {int(row): place for place, row in enumerate(self._order.rows)}
        self._emails = _emails(store)
        self._document_root = Path(os.environ.get(DOCUMENT_ROOT) or "/")

    def close(self) -> None:
        """Release the sources of the pictures."""
        self._pictures.close()

    def task(self, face: Face) -> dict[str, Any]:
        """Return the task of a face."""
        suggested, reason = self._prediction(face)
        answers = [self._annotation(said.annotation) for said in face.said if said.stands and said.annotation.user_id]
        return {
            "id": face.image.row,
            "data": {
                "image": self._image(face),
                "image_id": face.image.image_id,
                "reason": reason,
                "path": str(Path(face.source.root) / face.image.path),
                **({"crop": face.image.crop} if face.image.crop else {}),
                "split": face.image.split,
            },
            "annotations": answers,
            "predictions": [] if suggested is None else [suggested],
        }

    def _annotation(self, annotation: Annotation) -> dict[str, Any]:
        said = Said(annotation.kind, annotation.classes, annotation.confidence, annotation.note)
        name = annotation.user_name
        email = self._emails.get(name) or (name if "@" in name else None)
        duration = annotation.duration_ms
        return {
            "id": annotation.id,
            **({"completed_by": {"email": email}} if email else {}),
            "annotator": name,
            "result": to_result(said, self._mapping, self._taxonomy),
            "was_cancelled": annotation.kind == "skip",
            "ground_truth": False,
            "lead_time": None if duration is None else duration / 1000,
            "created_at": annotation.created_at.isoformat(),
            "updated_at": annotation.created_at.isoformat(),
        }

    def _prediction(self, face: Face) -> tuple[dict[str, Any] | None, str]:
        """Return what the current scores say about a face, and why it is asked; a reserved one is never suggested."""
        scores, place = self._order.scores, self._places.get(face.image.group)
        if scores is None:
            return None, ""
        reason, score, candidates, blind = "", 1.0, self._first_class(scores, face.image.group), face.reserved
        if place is not None:
            reason = self._order.explain(place, self._taxonomy, show_given=False).sentence
            score = (place + 1) / (len(self._order.rows) + 1)
            candidates, blind = self._order.candidates(place), blind or self._order.blind(place)
        version = scores.model_version
        options: dict[str, Any] = {"score": score, "model_version": version, "blind": blind}
        return prediction(self._mapping, self._taxonomy, candidates=candidates, **options), reason

    def _first_class(self, scores: Scores, row: int) -> tuple[dict[str, object], ...]:
        probs = scores.probs_of(row) if scores.mode == "fast" else None
        if probs is None:
            return ()
        first = int(probs.argmax())
        return ({"class": scores.classes[first], "prob": float(probs[first])},)

    def _image(self, face: Face) -> str:
        path = Path(face.source.root) / face.image.path
        if face.source.kind == "folder" and not face.image.crop:
            inside = path.is_relative_to(self._document_root)
            relative = path.relative_to(self._document_root) if inside else path.relative_to(path.anchor)
            return LINK + quote(relative.as_posix())
        try:
            data, suffix = self._pictures.read(face)
        except NotFoundError:
            return LINK + quote(path.as_posix().lstrip("/"))
        if len(data) > _LARGEST_INSIDE:
            data, suffix = _smaller(data), ".jpg"
        return f"data:{_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"


def _emails(store: LabelStore) -> dict[str, str]:
    """Return the email address that people have in the linked project, by their name here."""
    link = store.exchange.link()
    users: Pairs[str, str] = link.settings.get("users", {}) if link is not None else {}
    return {name: email for email, name in users.items()}


def _current_scores(workspace: Workspace, store: LabelStore) -> Scores | None:
    """Return the current generation; one that is pruned while it is read has a successor."""
    for _ in range(_TRIES):
        generation = store.learning.current_generation()
        if generation is None:
            return None
        try:
            return ScoresReader.load(workspace.root / "scores" / str(generation.id))
        except NotFoundError:
            continue
    return None


def _smaller(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((_SIDE_INSIDE, _SIDE_INSIDE))
        upright.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
