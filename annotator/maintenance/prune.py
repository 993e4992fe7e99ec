"""Remove what nothing refers to any more."""

import shutil
import time
from pathlib import Path

from annotator.chains import kept
from annotator.settings import Workspace
from annotator.store import LabelStore

_LEFTOVER_SECONDS = 3600.0
"""A temporary file this old was left by a process that died."""


def prune(workspace: Workspace, *, dry_run: bool = False) -> list[Path]:
    """Delete old scores and snapshots beyond the settings' `keep_*`, leftovers of killed processes, ended leases.

    The serving snapshot and the current scores always stay; folders newer than an hour that are not recorded may be on
    their way and stay too. Safe while server and learner run.

    Returns:
        The paths that were (or with `dry_run` would be) removed.
    """
    keep = workspace.settings.learner
    with LabelStore.open(workspace) as store:
        generation = store.learning.current_generation()
        snapshots = store.learning.snapshots()
        if not dry_run:
            store.leases.sweep()
    doomed = _leftovers(workspace.root)
    if generation is not None:
        numbered = [p for p in (workspace.root / "scores").glob("*") if p.name.isdecimal()]
        doomed += [p for p in numbered if int(p.name) <= generation.id - keep.keep_generations]
    wanted, _ = kept(snapshots, keep.keep_snapshots)
    recorded = {s.id for s in snapshots}
    for folder in (workspace.root / "snapshots").glob("*"):
        if folder.name not in wanted and (folder.name in recorded or _old(folder)):
            doomed.append(folder)
    doomed = sorted(set(doomed))
    if not dry_run:
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return doomed


def _leftovers(root: Path) -> list[Path]:
    """Return temporary files and folders (names that begin with a dot) of processes that are long gone."""
    found = []
    for kind in ("cache", "encoders", "scores", "snapshots", "runs", "backups"):
        for pattern in (".*", "*/.*"):
            found += [p for p in (root / kind).glob(pattern) if p.name != ".lock" and _old(p)]
    return found


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS
    except FileNotFoundError:
        return False
