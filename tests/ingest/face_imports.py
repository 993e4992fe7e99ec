"""What the tests of imports with faces share."""

from pathlib import Path

import numpy as np

from annotator.ingest.cache import cache_folder, shards
from annotator.ingest.importer import run_import
from annotator.ingest.report import ImportReport
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ingest import builders


def imported(store: LabelStore, source: Path, faces: str = "detect", **options: object) -> ImportReport:
    return run_import(store.workspace, store, source, "auto", faces=faces, **options)  # type: ignore[arg-type]


def records(store: LabelStore) -> list[ImageRecord]:
    return store.images.by_rows(store.images.table().rows.tolist())


def active(store: LabelStore) -> list[ImageRecord]:
    return [r for r in records(store) if r.state == "active"]


def cached(workspace: Workspace, size: int) -> np.ndarray:
    return np.concatenate([np.load(path) for _, _, path in shards(cache_folder(workspace, size))])


def with_settings(workspace: Workspace, **imports: object) -> Workspace:
    changed = workspace.settings.imports.model_copy(update=imports)
    return Workspace(workspace.root, workspace.settings.model_copy(update={"imports": changed}))


def given_folder(root: Path) -> Path:
    builders.write_picture(root / "a.png", 1, side=100)
    builders.write_picture(root / "b.png", 2, side=100)
    rows = [
        {"path": "a.png", "box": "10,20,40,40", "landmarks": "", "label": "anger"},
        {"path": "a.png", "box": "60,50,30,40", "landmarks": "65,60,85,70,75,70,70,80,80,85", "label": "fear"},
        {"path": "b.png", "box": "", "landmarks": "", "label": "anger"},
    ]
    builders.write_csv(root / "manifest.csv", rows)
    return root
