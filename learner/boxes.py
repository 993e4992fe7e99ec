"""Face boxes beside the pixel cache: `boxes.npy` of a run, and where a box lies in a view.

A box is left, top, right, bottom in shares [0, 1] of the side of the cached square face; NaN where it is not known.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner.draws import Rows
from learner.errors import InputError

Boxes = NDArray[np.float32]

# The public code takes this box of a 224-pixel view where its detector does not find exactly one face.
FALLBACK = np.array((25, 25, 220, 220), np.float32) / 224
SAME = 0.01  # of the side: boxes that lie closer than this are the same crop


def load_boxes(path: Path) -> Boxes | None:
    """Read boxes by row (highest row + 1, 4) float32; None where there is no such file.

    Raises:
        InputError: it is no such array.
    """
    if not path.exists():
        return None
    try:
        boxes = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read face boxes {path}: {error}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind != "f":
        raise InputError(f"{path} holds {boxes.dtype} {boxes.shape}, not float boxes (rows, 4)")
    turned = np.flatnonzero((boxes[:, :2] > boxes[:, 2:]).any(axis=1))
    if len(turned):
        raise InputError(f"{path}: the box of row {turned[0]} ends before it starts: {boxes[turned[0]].tolist()}")
    found: Boxes = boxes.astype(np.float32)
    return found


def of_rows(boxes: Boxes, rows: Rows) -> Boxes:
    """Return the boxes (B,4) of rows (B,); NaN beyond the end of the array."""
    found = np.full((len(rows), 4), np.nan, np.float32)
    inside = rows < len(boxes)
    found[inside] = boxes[rows[inside]]
    return found


def into_window(boxes: Boxes, windows: Boxes, mirrored: NDArray[np.bool_]) -> Boxes:
    """Say where boxes (B,4) lie in views that show a window (B,4: left, top, width, height) of the face, cut to them.

    mirrored (B,): the view was flipped after cropping. A box outside its window ends up without area.
    """
    start = np.tile(windows[:, :2], 2)
    moved = (boxes - start) / np.tile(windows[:, 2:], 2)
    moved[mirrored] = moved[mirrored][:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
    inside: Boxes = moved.clip(0, 1).astype(np.float32)
    return inside


def in_view(boxes: Boxes) -> Boxes:
    """Put `FALLBACK` in the place of boxes (B,4) of a view that are not known or show nothing of the face."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.where((sides > 0).all(axis=1, keepdims=True), boxes, FALLBACK)  # no comparison with NaN is true


def same_crop(boxes: Boxes) -> bool:
    """Tell whether the known ones of boxes (L,4), if any, are all the same."""
    known = boxes[np.isfinite(boxes).all(axis=1)]
    return not len(known) or bool(np.ptp(known, axis=0).max() <= SAME)
