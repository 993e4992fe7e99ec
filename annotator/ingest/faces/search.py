"""Search an image for faces and cut out each."""

from dataclasses import dataclass

import numpy as np

from annotator.ingest.crops import Square
from annotator.ingest.decode import Decoded, Limits, Quarantine, Upright, take
from annotator.ingest.faces.detector import DetectorChoice, find_faces
from annotator.records import Face

NOT_FOUND = "no face found"


@dataclass(frozen=True, slots=True)
class Detected:
    """A face, the square cut for it, and what was cut."""

    face: Face
    crop: Square
    image: Decoded


class FaceSearch:
    """A detector at work in one process."""

    def __init__(self, choice: DetectorChoice) -> None:
        """Open the detector of `choice`.

        Raises:
            InputError: its model is missing or cannot be read.
        """
        self._detector = choice.open()
        self._margin = choice.margin

    def __call__(self, upright: Upright, size: int, limits: Limits) -> list[Detected] | Quarantine:
        """Return the faces of an image from left to right, or why there are none."""
        import cv2

        try:
            faces = find_faces(self._detector, np.asarray(upright.image), limits.min_side)
        except cv2.error as error:
            return Quarantine(f"the face detector failed: {error.err}")
        crops = [(face, Square.around(face, self._margin)) for face in faces]
        cut = [(face, crop, take(upright, size, limits, crop)) for face, crop in crops]
        found = [Detected(face, crop, image) for face, crop, image in cut if isinstance(image, Decoded)]
        return found or Quarantine(NOT_FOUND)
