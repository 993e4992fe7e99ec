"""YuNet (Wu, Peng and Yu, 2023) by OpenCV's `FaceDetectorYN`: faces down to 10 pixels with five landmarks."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from annotator.errors import InputError
from annotator.ingest.faces.detector import SMALLEST, Image
from annotator.records import Face

_SCORE, _OVERLAP, _CANDIDATES = 0.7, 0.3, 5000
_REMEDY = "name a face_detection_yunet ONNX file as imports.detector_model, or set imports.detector to cascade"


class YuNet:
    """One ONNX file. Landmarks come eyes first, the one on the picture's left before the other."""

    name = "yunet"

    def __init__(self, model: Path | None) -> None:
        """Load `model`.

        Raises:
            InputError: there is no such file, or OpenCV cannot read it.
        """
        if model is None or not model.is_file():
            raise InputError(f"there is no face detection model at {model}; {_REMEDY}")
        cv2.setNumThreads(1)  # decoding processes share the machine between them
        try:
            self._net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), _SCORE, _OVERLAP, _CANDIDATES)
            self._net.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise InputError(f"OpenCV cannot use {model} as a YuNet model ({error.err}); {_REMEDY}") from error

    def detect(self, image: Image, smallest: int = SMALLEST) -> list[Face]:
        """Return the faces in an RGB image (h, w, 3)."""
        self._net.setInputSize((image.shape[1], image.shape[0]))
        _, rows = self._net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        found = [] if rows is None else [_face(row) for row in np.asarray(rows, dtype=np.float64)]
        return [face for face in found if max(face.box[2:]) >= smallest]


def _face(row: NDArray[np.float64]) -> Face:
    """Read left, top, width, height, five points (x, y) and the score, as `FaceDetectorYN.detect` gives them."""
    left, top, width, height = row[:4].tolist()
    points = tuple((x, y) for x, y in row[4:14].reshape(5, 2).round(1).tolist())
    return Face((left, top, width, height), round(float(row[14]), 3), points)
