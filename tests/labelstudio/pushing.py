"""A workspace with drawn faces, linked to a project of the real server, and what the tests look at on both sides."""

import io
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotator.labelstudio.api.server import Server
from annotator.labelstudio.linking.link import link as make_link
from annotator.records import Answer, Lease, User
from annotator.scores import ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link
from tests.conftest import new_image
from tests.scores import write_generation


@dataclass
class Bench:
    """A linked workspace."""

    workspace: Workspace
    store: LabelStore
    server: Server
    rows: list[int]
    images: Path

    @property
    def link(self) -> Link:
        found = self.store.exchange.link()
        assert found is not None
        return found

    @property
    def project_id(self) -> int:
        return self.link.project_id

    def publish(self, order: Sequence[int], **columns: Any) -> str:
        """Publish a generation that asks for `order`; return its version."""
        folder = write_generation(self.workspace, self.store, self.rows, list(order), **columns)
        return ScoresReader.load(folder).model_version

    def image_id(self, row: int) -> str:
        return self.store.images.by_rows([row])[0].image_id

    def answer(self, user: User, row: int, slug: str = "anger") -> int:
        """Answer a face on our page; return the annotation's id."""
        number = self.store.last_seq()
        answer = Answer(f"here-{row}-{number}", self.image_id(row), "label", (slug,))
        return self.store.decisions.submit(user, answer).annotation.id

    def there(self) -> list[dict[str, Any]]:
        """Return the project's tasks with their predictions, by id."""
        include = ("id", "data", "predictions", "model_version", "score", "result", "total_annotations")
        return sorted(self.server.iter_tasks(self.project_id, include=include), key=lambda task: int(task["id"]))

    def rows_there(self) -> list[int]:
        """Return the rows of the project's tasks, by task id."""
        row_of = {self.image_id(row): row for row in self.rows}
        return [row_of[task["data"]["image_id"]] for task in self.there()]

    def shown_version(self) -> str:
        return str(self.server.project(self.project_id)["model_version"] or "")

    def check_rows(self, rows: Sequence[int]) -> None:
        """Check that exactly these faces are tasks, each once."""
        there = Counter(self.rows_there())
        assert (there - Counter(rows), Counter(rows) - there) == (Counter(), Counter()), "too many, missing"

    def check(self, rows: Sequence[int], version: str | None = None) -> None:
        """Check that exactly these faces are tasks, each once, each with one prediction: that of the shown version."""
        tasks = self.there()
        self.check_rows(rows)
        shown = self.shown_version()
        assert version is None or shown == version
        assert [[p["model_version"] for p in task["predictions"]] for task in tasks] == [[shown]] * len(tasks)
        known = self.store.exchange.tasks(self.link.id, limit=100_000, states=("open",))
        assert [task.task_id for task in known] == [int(task["id"]) for task in tasks]
        assert {task.model_version for task in known} == ({shown} if tasks else set())
        assert self.link.model_version == shown or not tasks


def draw(number: int) -> bytes:
    """Draw a small picture that is like no other."""
    seed = zlib.crc32(str(number).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def with_faces(workspace: Workspace, store: LabelStore, folder: Path, faces: int) -> list[int]:
    """Import drawn faces; return their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(faces):
        (folder / f"{number}.png").write_bytes(draw(number))
    source = store.images.register_source(str(folder), "folder", "folder")
    for start in range(0, faces, 500):
        new = [new_image(f"{number}", width=24, height=24) for number in range(start, min(start + 500, faces))]
        store.images.add(source, new, "none")
    return [int(row) for row in store.images.table().rows]


def linked(workspace: Workspace, store: LabelStore, server: Server, faces: int, folder: Path, **settings: Any) -> Bench:
    """Make faces and a project that the workspace is linked to."""
    rows = with_faces(workspace, store, folder, faces)
    make_link(workspace, store, server, title=f"push {folder.parent.name}"[:50], **settings)
    return Bench(workspace, store, server, rows, folder)


def lease(user: User, row: int) -> Lease:
    """Return a lease of a face that runs for an hour."""
    return Lease(f"lease-{row}", row, user.id, datetime.now(UTC) + timedelta(hours=1), "coverage", None, "", False)


def result(slug: str) -> list[dict[str, Any]]:
    """Return what an annotator sends who presses one class in a project of ours."""
    item = {"from_name": "expression", "to_name": "image", "type": "choices", "value": {"choices": [slug]}}
    return json.loads(json.dumps([item]))
