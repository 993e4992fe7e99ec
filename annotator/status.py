"""The state of a workspace as one dictionary: what `annotator status` prints and `GET status` returns."""

import json
from typing import Any

from annotator.locks import lock_held
from annotator.settings import Workspace
from annotator.store import LabelStore

_OFF: dict[str, Any] = {"state": "off", "progress": None}


def workspace_status(workspace: Workspace, store: LabelStore) -> dict[str, Any]:
    """Return images, annotations, labels, snapshots, queue and learner of a workspace.

    Keys: `images` {pool, val, test, quarantined, leak, duplicate_groups, …}, `annotations` count, `labels` {labeled,
    partial, disputed, unusable, unlabeled}, `snapshots` [{id, method, label_seq, metrics, published_at, serving}],
    `queue` {mode, model, behind}, `learner` {state, progress, …}.
    """
    generation = store.learning.current_generation()
    last_seq = store.last_seq()
    return {
        "images": store.images.counts(),
        "annotations": store.decisions.count(),
        "labels": store.decisions.label_counts(),
        "snapshots": [
            {
                "id": snapshot.id,
                "method": snapshot.method,
                "label_seq": snapshot.label_seq,
                "metrics": snapshot.metrics,
                "published_at": snapshot.published_at.isoformat(),
                "serving": snapshot.serving,
            }
            for snapshot in store.learning.snapshots()
        ],
        "queue": {
            "mode": generation.mode if generation else "import order",
            "model": generation.model_version if generation else None,
            "behind": max(0, last_seq - (generation.label_seq if generation else 0)),
        },
        "learner": learner_state(workspace),
    }


def learner_state(workspace: Workspace) -> dict[str, Any]:
    """Return what the learner reports of itself, `{"state": "off"}` when none runs."""
    path = workspace.root / "learner.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(_OFF)
    if not isinstance(state, dict) or not lock_held(workspace.root / "learner.lock"):
        # A learner that was killed leaves its last words behind.
        return dict(_OFF)
    return {**_OFF, **state}
