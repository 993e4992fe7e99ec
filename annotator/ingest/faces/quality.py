"""What makes a face hard to read: too few pixels, blur, a head turned away."""

import math

from annotator.records import Face, KnownFace

SMALL_SIDE = 40
"""A face of fewer pixels on its longer side is small."""
BLURRED = 0.04
"""A face square of less sharpness (`decode.sharpness`) is blurred: none of 200 FER+ faces is, 94 % of them are after a
Gaussian blur of 1/32 of their side."""
TURNED = 0.3
"""A face is turned when its nose lies this share of the distance between the eyes away from the middle between them."""
_RIGHT_EYE, _LEFT_EYE, _NOSE = 0, 1, 2


def judged(face: Face, found_by: str, sharpness: float) -> KnownFace:
    """Return `face` with its flags; `sharpness` is that of its square at full resolution."""
    return KnownFace(
        face, found_by, small=max(face.box[2:]) < SMALL_SIDE, blurred=sharpness < BLURRED, turned=is_turned(face)
    )


def is_turned(face: Face) -> bool | None:
    """Tell whether the head looks away, by nose and eyes; None without landmarks.

    ► Eyes at (0, 0) and (10, 0): a nose at (5, 6) is straight, one at (8.5, 6) is turned (.35 of the distance).
    """
    if face.landmarks is None:
        return None
    (x0, y0), (x1, y1), (x, y) = (face.landmarks[i] for i in (_RIGHT_EYE, _LEFT_EYE, _NOSE))
    apart = math.hypot(x1 - x0, y1 - y0)
    if apart == 0:
        return True
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / apart**2
    return abs(along - 0.5) > TURNED
