"""The demo workspace: drawn faces, imported, with a simulated crowd's votes as truth."""

from collections.abc import Callable
from pathlib import Path

from annotator import taxonomy
from annotator.ingest import demo_faces
from annotator.ingest.importer import run_import
from annotator.settings import FILE, Workspace
from annotator.store import LabelStore

DEMO_LEARNER = {"image_size": 48, "new_labels": 20, "min_labels": 16, "round_minutes": 1.0}
"""A laptop sees its first trained round after a few minutes of labeling."""


def prepare(root: Path, count: int, seed: int, progress: Callable[[int, int, str], None]) -> Workspace:
    """Make the demo workspace, or complete one that an earlier call was stopped in; existing answers stay.

    Raises:
        WorkspaceError: `root` holds other files.
    """
    workspace = (
        Workspace.open(root)
        if (root / FILE).is_file()
        else Workspace.create(root, taxonomy.FERPLUS, name="demo", learner=DEMO_LEARNER)
    )
    drawn = workspace.root / "faces"
    if not (drawn / "manifest.csv").is_file():
        demo_faces.generate(drawn, count, seed=seed, progress=lambda done, total: progress(done, total, "drawing"))
    store = LabelStore.open(workspace)
    try:
        run_import(workspace, store, drawn / "manifest.csv", "manifest", given_as="truth", progress=progress)
    finally:
        store.close()
    return workspace
