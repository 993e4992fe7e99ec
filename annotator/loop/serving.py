"""Which snapshot a person has chosen to serve, by its method or its id (`annotator serve-model`)."""

from collections.abc import Sequence
from typing import Any

from annotator.chains import chains
from annotator.errors import InputError, NotFoundError
from annotator.loop.referee import standing
from annotator.records import Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore

AUTO = "auto"
"""People's answers decide."""
START = "start"
START_NAMES = (START, "hog")
"""The features of the encoder that the workspace starts from; they were called "hog" when there was no other."""


def chosen_snapshot(workspace: Workspace, snapshots: Sequence[Snapshot], name: str) -> Snapshot | None:
    """Return the newest snapshot of the method `name`, or the snapshot of that id; None when its features are gone."""
    found = chains(snapshots).get(name) or [s for s in snapshots if s.id == name]
    folder = workspace.folder("snapshots")
    return next((s for s in reversed(found) if (folder / s.id / "rows.npy").is_file()), None)


def choose(workspace: Workspace, store: LabelStore, name: str) -> str:
    """Keep what shall serve: a method (its newest snapshot, also later ones), a snapshot's id, "start" or "auto".

    A running learner follows within a second or two. Returns what will happen, in a sentence.

    Raises:
        NotFoundError: no method or snapshot of that name was ever published.
        InputError: the snapshot's features were pruned.
    """
    if name == AUTO:
        store.learning.choose(None)
        return "people's answers decide which model serves"
    if name in START_NAMES:
        store.learning.choose(START)
        return "the features of the encoder that the workspace starts from serve"
    snapshots = store.learning.snapshots()
    known = sorted({s.method for s in snapshots})
    if name not in known and all(s.id != name for s in snapshots):
        raise NotFoundError(
            f"no method or snapshot {name!r}; choose {', '.join([*known, START, AUTO])} or a snapshot's id"
        )
    snapshot = chosen_snapshot(workspace, snapshots, name)
    if snapshot is None:
        raise InputError(f"the features of {name} were pruned; choose its method or a newer snapshot")
    store.learning.choose(name)
    newest = f"{snapshot.id} and what follows it" if name == snapshot.method else snapshot.id
    return f"{newest} will serve as soon as a learner runs"


def stands(workspace: Workspace, store: LabelStore, snapshot: Snapshot | None) -> dict[str, Any] | None:
    """Return how a snapshot has done against the features that serve; None before the first answer."""
    generation = store.learning.current_generation()
    if snapshot is None or generation is None:
        return None
    tally = standing(workspace.folder("snapshots") / snapshot.id, generation.encoder)
    if tally is None:
        return None
    return {"answers": tally.count, "nats": tally.mean, "words": tally.summary()}
