"""Labeled faces that look alike, asked for without ever making an answer wait."""

import threading
import time
from typing import Any

from annotator.records import ImageRecord
from annotator.retrieval import FaceRetrieval
from annotator.settings import Workspace
from annotator.store import LabelStore
from ui.models import thumbnail_url

_COUNT = 6
# Reading all labels anew costs time that answers need too: it may take one part in twenty of one core.
_REST = 20.0


class NearestFaces:
    """Neighbours and prototypes as the page shows them; thread-safe."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._images = store.images
        self._retrieval = FaceRetrieval(workspace, store)
        self._lock = threading.Lock()
        self._next_refresh = 0.0

    def of(self, record: ImageRecord) -> dict[str, Any]:
        """Return {neighbours, prototypes}, each a list of faces with image_url, classes and similarity."""
        with self._lock:
            self._refresh()
            near = self._retrieval.neighbours(record.row, _COUNT, exclude_group=record.group)
            typical = [p for p in self._retrieval.prototypes().values() if p.row != record.group]
        found = [(n.row, n.label, n.similarity) for n in near]
        return {
            "neighbours": self._faces(found),
            "prototypes": self._faces([(p.row, p.label, 1.0) for p in typical]),
        }

    def _refresh(self) -> None:
        started = time.monotonic()
        if started < self._next_refresh:
            return
        self._retrieval.refresh()
        now = time.monotonic()
        self._next_refresh = now + _REST * (now - started)

    def _faces(self, found: list[tuple[int, str, float]]) -> list[dict[str, Any]]:
        records = self._images.by_rows([row for row, _, _ in found]) if found else []
        return [
            {
                "image_id": record.image_id,
                "image_url": thumbnail_url(record.image_id),
                "classes": [label],
                "similarity": round(similarity, 4),
            }
            for record, (_, label, similarity) in zip(records, found, strict=True)
            if record.state == "active"
        ]
