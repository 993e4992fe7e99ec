"""OpenCV's bundled Haar cascades: no download, frontal faces (and profiles on demand), no landmarks."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotator.ingest.faces.detector import SMALLEST, Image
from annotator.records import Face

_FRONTAL, _PROFILE = "haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml"
_STEP = 1.1
_NEIGHBOURS, _PROFILE_NEIGHBOURS = 3, 5


class Cascade:
    """Viola-Jones. The score is the weight of the last stage, comparable within one cascade only."""

    def __init__(self, profile: bool = False) -> None:
        """Load the frontal cascade, with `profile` also the one for faces from the side."""
        self.name = "cascade+profile" if profile else "cascade"
        cv2.setNumThreads(1)  # decoding processes share the machine between them
        self._frontal = _load(_FRONTAL)
        self._profile = _load(_PROFILE) if profile else None

    def detect(self, image: Image, smallest: int = SMALLEST) -> list[Face]:
        """Return the faces in an RGB image (h, w, 3)."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found = _boxes(self._frontal, gray, _NEIGHBOURS, smallest)
        if self._profile is not None:
            # The cascade knows faces that look to the left; a frontal box wins over a profile on the same face.
            mirrored = np.ascontiguousarray(gray[:, ::-1])
            sides = _boxes(self._profile, gray, _PROFILE_NEIGHBOURS, smallest)
            others = _boxes(self._profile, mirrored, _PROFILE_NEIGHBOURS, smallest)
            sides += [((gray.shape[1] - left - w, top, w, h), s) for (left, top, w, h), s in others]
            least = min((s for _, s in found), default=0.0)
            most = max((s for _, s in sides), default=0.0)
            found += [(box, least - 1 - (most - s)) for box, s in sides]
        return [Face(box, round(score, 3)) for box, score in found]


Gray = NDArray[np.integer[Any] | np.floating[Any]]
_Found = tuple[tuple[float, float, float, float], float]


def _load(name: str) -> cv2.CascadeClassifier:
    path = Path(cv2.__file__).parent / "data" / name
    classifier = cv2.CascadeClassifier(str(path))
    if classifier.empty():
        raise RuntimeError(f"OpenCV came without its cascade {path}")
    return classifier


def _boxes(classifier: cv2.CascadeClassifier, gray: Gray, neighbours: int, smallest: int) -> list[_Found]:
    boxes, _, weights = classifier.detectMultiScale3(
        gray, _STEP, neighbours, minSize=(smallest, smallest), outputRejectLevels=True
    )
    places = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
    scores = np.asarray(weights, dtype=np.float64).ravel().tolist()
    return [((x, y, w, h), score) for (x, y, w, h), score in zip(places, scores, strict=True)]
