"""The state of a workspace as one dictionary: what `annotator status` prints and `GET status` returns."""

from typing import Any

from annotator import encoders
from annotator.chains import Standing, standings
from annotator.durable import read_object
from annotator.labelstudio.api.credentials import redact
from annotator.labelstudio.report import sync_state
from annotator.locks import lock_held
from annotator.settings import Workspace
from annotator.store import LabelStore

_OFF: dict[str, Any] = {"state": "off", "progress": None}


def workspace_status(workspace: Workspace, store: LabelStore) -> dict[str, Any]:
    """Return images, annotations, labels, snapshots, queue and learner of a workspace.

    Keys: `images` {pool, val, test, quarantined, leak, duplicate_groups, …}, `faces` {known, small, blurred, turned}
    (where faces were looked for), `annotations` count, `labels` {labeled, partial, disputed, unusable, unlabeled},
    `snapshots` [{id, method, label_seq, metrics, published_at, serving}], `methods` {name: {snapshot, rounds,
    label_seq, metrics, serving, trained}}, `serving` {snapshot, chosen}, `queue` {mode, model, behind}, `learner`
    {state, progress, …}.
    """
    generation = store.learning.current_generation()
    last_seq = store.last_seq()
    snapshots = store.learning.snapshots()
    methods = standings(snapshots, workspace.settings.learner.methods)
    return {
        "images": store.images.counts(),
        "faces": store.faces.counts(),
        "annotations": store.decisions.count(),
        "labels": store.decisions.label_counts(),
        "methods": {line.method: _told(line) for line in methods},
        "serving": {
            "snapshot": next((s.id for s in snapshots if s.serving), None),
            "chosen": store.learning.chosen(),
        },
        "snapshots": [
            {
                "id": snapshot.id,
                "method": snapshot.method,
                "label_seq": snapshot.label_seq,
                "metrics": snapshot.metrics,
                "published_at": snapshot.published_at.isoformat(),
                "serving": snapshot.serving,
            }
            for snapshot in snapshots
        ],
        "queue": {
            "mode": generation.mode if generation else "import order",
            "model": generation.model_version if generation else None,
            "behind": max(0, last_seq - (generation.label_seq if generation else 0)),
        },
        "encoder": {
            "start": workspace.settings.learner.start,
            "id": (generation.encoder or None) if generation else None,
            "pretraining": encoders.pretraining(workspace)["state"],
        },
        "learner": learner_state(workspace),
        "labelstudio": link_state(workspace, store),
    }


def link_state(workspace: Workspace, store: LabelStore) -> dict[str, Any] | None:
    """Return the linked Label Studio project, None without one: title, url, tasks by state, and when both were equal.

    Keys: `project_id`, `title`, `url`, `tasks` {open, answered, …}, `state` (of a running sync, else `off`),
    `synced_at` (ISO 8601) or None.
    """
    link = store.exchange.link()
    if link is None:
        return None
    sync = sync_state(workspace)
    return {
        "project_id": link.project_id,
        "title": link.title,
        "url": redact(link.url),
        "tasks": store.exchange.counts(link.id)["tasks"],
        "state": sync["state"],
        "synced_at": sync["synced_at"],
    }


def _told(line: Standing) -> dict[str, Any]:
    newest = line.newest
    return {
        "snapshot": newest.id if newest is not None else None,
        "rounds": line.rounds,
        "label_seq": newest.label_seq if newest is not None else None,
        "metrics": newest.metrics if newest is not None else {},
        "serving": line.serving,
        "trained": line.trained,
    }


def learner_state(workspace: Workspace) -> dict[str, Any]:
    """Return what the learner reports of itself, `{"state": "off"}` when none runs."""
    # A learner that was killed leaves its last words behind.
    running = lock_held(workspace.root / "learner.lock")
    return {**_OFF, **(read_object(workspace.root / "learner.json") if running else {})}
