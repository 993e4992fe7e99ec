"""What a face detector is, which there are, and how one is used on images of any size.

OpenCV is imported by the detectors alone: an import that looks for no faces never loads it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from annotator.records import Face

DetectorName = Literal["cascade", "cascade+profile", "yunet"]
Image = NDArray[np.uint8]

_LONGEST, _SHORTEST = 1280, 192
"""A working image has at most so many pixels on its longer and, within that, at least so many on its shorter side."""
_BORDER = 48
"""Pixels of repeated border about a working image: detectors miss faces that fill the picture.

On FER+ validation faces, enlarged to 192 pixels, the cascade finds 59 % without a border and 76 % with it.
"""
_OVERLAP = 0.4
SMALLEST = 24
"""Pixels a side that a face must have in a working image: the cascades were trained on 20."""
MAX_FACES = 100
"""Faces taken of one photo at most, the surest first."""


class FaceDetector(Protocol):
    """Finds faces. One instance belongs to one thread."""

    name: str

    def detect(self, image: Image, smallest: int = SMALLEST) -> list[Face]:
        """Return the faces in an RGB image (h, w, 3), boxes in its pixels, in any order; they may overlap.

        Faces of fewer than `smallest` pixels a side need not be found.
        """


@dataclass(frozen=True, slots=True)
class DetectorChoice:
    """Which detector to open: what a decoding process is told.

    `model` is the ONNX file of "yunet"; `margin` is added on each side of a face, in shares of its side.
    """

    name: DetectorName
    model: Path | None = None
    margin: float = 0.15

    def open(self) -> FaceDetector:
        """Load the detector.

        Raises:
            InputError: "yunet" without a model that OpenCV can read.
        """
        if self.name == "yunet":
            from annotator.ingest.faces.yunet import YuNet

            return YuNet(self.model)
        from annotator.ingest.faces.cascade import Cascade

        return Cascade(profile=self.name == "cascade+profile")


def find_faces(detector: FaceDetector, image: Image, min_side: int) -> list[Face]:
    """Return the faces of an RGB image (h, w, 3) from left to right, boxes within the image.

    The image is brought to a size that detectors like and gets a border; of boxes that overlap the surest stays. Faces
    with less than `min_side` pixels a side, or with their middle outside the image, are left out.
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(_LONGEST / max(height, width), max(1.0, _SHORTEST / min(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    working = image if size == (width, height) else cv2.resize(image, size, interpolation=how)
    working = cv2.copyMakeBorder(working, _BORDER, _BORDER, _BORDER, _BORDER, cv2.BORDER_REPLICATE)
    smallest = max(SMALLEST, round(min_side * scale))
    found = [_in_original(face, scale) for face in detector.detect(np.asarray(working, dtype=np.uint8), smallest)]
    clipped = [face for face in (_clipped(face, width, height, min_side) for face in found) if face is not None]
    return sorted(_apart(clipped)[:MAX_FACES], key=lambda face: face.box)


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return intersection over union of two boxes (left, top, width, height), in [0, 1]."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, across) * max(0.0, down)
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0


def _in_original(face: Face, scale: float) -> Face:
    left, top, width, height = face.box
    box = (left - _BORDER) / scale, (top - _BORDER) / scale, width / scale, height / scale
    points = face.landmarks
    if points is not None:
        points = tuple(((x - _BORDER) / scale, (y - _BORDER) / scale) for x, y in points)
    return Face(box, face.score, points)


def _clipped(face: Face, width: int, height: int, min_side: int) -> Face | None:
    left, top, w, h = face.box
    if not (0 <= left + w / 2 <= width and 0 <= top + h / 2 <= height):
        return None
    x0, y0, x1, y1 = max(0.0, left), max(0.0, top), min(float(width), left + w), min(float(height), top + h)
    if min(x1 - x0, y1 - y0) < min_side:
        return None
    return Face((round(x0, 1), round(y0, 1), round(x1 - x0, 1), round(y1 - y0, 1)), face.score, face.landmarks)


def _apart(faces: list[Face]) -> list[Face]:
    """Return the faces that overlap no surer one, the surest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: (-(f.score or 0.0), f.box)):
        if all(iou(face.box, other.box) < _OVERLAP for other in kept):
            kept.append(face)
    return kept
