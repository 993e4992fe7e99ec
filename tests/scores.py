"""Write a generation of scores as the learner does, with few words."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from annotator.records import ARMS, Arm, Generation
from annotator.settings import Workspace
from annotator.store import LabelStore


def write_generation(
    workspace: Workspace,
    store: LabelStore,
    rows: list[int],
    order: list[int],
    *,
    arms: Arm = "uncertain",
    candidates: tuple[str, ...] = (),
    probs: tuple[float, float] = (0.6, 0.3),
    given: str | None = None,
    blind: bool = False,
    mode: str = "fast",
) -> Path:
    """Publish a generation that read `rows` and asks for `order`, and return its folder.

    Every face gets `probs` on surprise and fear and the rest of the mass spread over the others.
    """
    classes = workspace.settings.classes
    number = store.learning.next_generation_id()
    values = np.full(len(classes), (1 - sum(probs)) / (len(classes) - 2), dtype=np.float32)
    values[[classes.index("surprise"), classes.index("fear")]] = probs
    count = len(order)
    arrays = {
        "rows": np.array(rows, dtype=np.int64),
        "probs": np.tile(values, (len(rows), 1)),
        "order": np.array(order, dtype=np.int64),
        "arms": np.full(count, ARMS.index(arms), dtype=np.uint8),
        "candidates": np.full(count, workspace.settings.taxonomy.mask(candidates), dtype=np.int64),
        "given": np.full(count, classes.index(given) if given else -1, dtype=np.int8),
        "blind": np.full(count, blind, dtype=bool),
        "seen": np.zeros(count, dtype=np.uint8),
    }
    now = datetime.now(UTC)
    label_seq = store.last_seq()
    version = f"test.{number}"
    meta = {
        "id": number,
        "model_version": version,
        "mode": mode,
        "label_seq": label_seq,
        "encoder": "test",
        "signals": [],
        "classes": list(classes),
        "shares": {},
        "temperature": 1.0,
        "created_at": now.isoformat(),
    }
    folder = workspace.folder("scores") / str(number)
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "meta.json").write_text(json.dumps(meta))
    store.learning.publish_generation(Generation(number, version, mode, label_seq, "test", now))
    return folder
