"""Read one generation of scores: the complete reading of the pool that the queue serves (DESIGN 4).

`annotator.loop.scores` writes these folders; whoever serves faces reads them here, without torch and without the loop.
Once its row is in the database a generation never changes, so what is loaded stays valid until the next one is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from annotator.errors import NotFoundError, WorkspaceError
from annotator.records import ARMS, Arm

Mode = Literal["import order", "coverage", "fast"]
MODES: tuple[Mode, ...] = ("import order", "coverage", "fast")
META = "meta.json"
ARRAYS: dict[str, str] = {
    "rows": "int64",
    "probs": "float32",
    "order": "int64",
    "arms": "uint8",
    "candidates": "int64",
    "given": "int8",
    "blind": "bool",
    "seen": "uint8",
}
"""The arrays of a generation and their types; each is `<name>.npy` in its folder."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One generation. N rows were read, M of them are in the order to ask.

    rows (N,) int64 ascending, group representatives of the active pool; probs (N, K) float32, rows sum to one (all 1/K
    while there is no model, i.e. in every mode but "fast"); order (M,) int64, rows in the order to ask, each at
    most once; aligned with it: arms (M,) uint8, index into `records.ARMS`; candidates (M,) int64, bit mask of the
    candidate set, 0 when there is no model; given (M,) int8, the label under review, or -1 (also where people disagree:
    then the candidate set is what they said); blind (M,) bool, a random face reserved for validation: nothing may be
    suggested for it; seen (M,) uint8, bits of `records.Sight`: what the training methods saw in the face.
    meta: id, model_version, mode, label_seq, encoder, signals (ids of the snapshots that saw it), classes, shares,
    temperature, created_at (ISO 8601, UTC).
    """

    rows: NDArray[np.int64]
    probs: NDArray[np.float32]
    order: NDArray[np.int64]
    arms: NDArray[np.uint8]
    candidates: NDArray[np.int64]
    given: NDArray[np.int8]
    blind: NDArray[np.bool_]
    seen: NDArray[np.uint8]
    meta: dict[str, Any]

    @property
    def id(self) -> int:
        """The number of the generation."""
        return int(self.meta["id"])

    @property
    def model_version(self) -> str:
        """`<snapshot or encoder>.<generation>`, kept with every answer."""
        return str(self.meta["model_version"])

    @property
    def mode(self) -> str:
        """One of `MODES`; anything but "fast" means that no model has spoken yet."""
        return str(self.meta["mode"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The slugs along the class axis of `probs` and of the bit masks."""
        return tuple(self.meta["classes"])

    def arm(self, position: int) -> Arm:
        """Return the arm that put `order[position]` where it is."""
        return ARMS[int(self.arms[position])]

    def candidate_slugs(self, position: int) -> tuple[str, ...]:
        """Return the candidate set of `order[position]`, most probable class first."""
        mask = int(self.candidates[position])
        chosen = [k for k in range(len(self.classes)) if mask >> k & 1]
        probs = self.probs_of(int(self.order[position]))
        if probs is not None:
            chosen.sort(key=lambda k: -float(probs[k]))
        return tuple(self.classes[k] for k in chosen)

    def probs_of(self, row: int) -> NDArray[np.float32] | None:
        """Return the class probabilities (K,) of a row, or None when this generation does not know it."""
        index = int(np.searchsorted(self.rows, row))
        if index == len(self.rows) or self.rows[index] != row:
            return None
        found: NDArray[np.float32] = self.probs[index]
        return found


class ScoresReader:
    """Opens generation folders."""

    @staticmethod
    def load(folder: Path) -> Scores:
        """Read a generation completely into memory and check that its parts fit together.

        Raises:
            NotFoundError: the folder is gone, e.g. pruned after newer generations: ask for the current one again.
            WorkspaceError: a file is missing or damaged.
        """
        if not folder.is_dir():
            raise NotFoundError(f"generation {folder.name} is not there any more; read the current one again")
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            arrays = {
                name: np.load(folder / f"{name}.npy", allow_pickle=False)
                for name in ARRAYS
                if name != "seen" or (folder / "seen.npy").exists()
            }
            # A generation from before there was `seen` serves until the learner has made the next one.
            arrays.setdefault("seen", np.zeros(len(arrays["order"]), dtype=np.uint8))
        except (OSError, ValueError) as error:
            if not folder.is_dir():
                raise NotFoundError(
                    f"generation {folder.name} was pruned while it was read; read the current one"
                ) from error
            raise WorkspaceError(f"{folder} is damaged ({error}); delete it and start the learner") from error
        scores = Scores(**arrays, meta=meta)
        _check(scores, folder)
        return scores


def _check(scores: Scores, folder: Path) -> None:
    shapes = {name: getattr(scores, name).shape for name in ARRAYS}
    count, asked = shapes["rows"][0], shapes["order"][0]
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("order", "arms", "candidates", "given", "blind", "seen"), (asked,)
    )
    wanted |= {"rows": (count,), "probs": (count, len(scores.meta.get("classes", ())))}
    wrong = {name: shapes[name] for name in ARRAYS if shapes[name] != wanted[name]}
    types = {
        name: str(getattr(scores, name).dtype) for name, kind in ARRAYS.items() if getattr(scores, name).dtype != kind
    }
    if wrong or types:
        raise WorkspaceError(f"{folder} is damaged (shapes {wrong}, types {types}); delete it and start the learner")
