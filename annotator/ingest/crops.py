"""Which part of an image a sample is, as text that identifies it: a box as listed, or an upright square on a face.

This module imports nothing but Pillow and numpy, so that a decoding process starts quickly.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from annotator.records import Face

NO_FACE = "no face"
"""Stands where a crop would for an image that was searched for faces and shows none."""
_LEAST_TILT = 2.0
"""Degrees of tilt below which a face is cut as it stands: turning it would only soften it."""
_SQUARE = re.compile(r"(-?\d+),(-?\d+),(\d+)@(-?\d+(?:\.\d)?)")
_RIGHT_EYE, _LEFT_EYE = 0, 1


class Box(NamedTuple):
    """A crop in pixels of the upright image, taken as it is."""

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.width},{self.height}"

    def refusal(self, width: int, height: int, min_side: int, max_pixels: int) -> str | None:
        """Return why it cannot be cut from an image of `width` x `height` pixels, or None."""
        if self.left + self.width > width or self.top + self.height > height:
            return f"crop {self} lies outside the image of {width}x{height} pixels"
        return f"crop {self} is smaller than {min_side} pixels" if min(self.width, self.height) < min_side else None

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the part of an RGB image."""
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))


class Square(NamedTuple):
    """A square on a face, turned by `tilt` degrees clockwise about its middle: cutting it sets the face upright.

    It may reach beyond the image; what is missing there repeats the image's border.
    """

    left: int
    top: int
    side: int
    tilt: float = 0.0

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.side}@{self.tilt:g}"

    @classmethod
    def around(cls, face: Face, margin: float) -> "Square":
        """Return the square about a face's box with `margin` of its longer side on every side, upright by the eyes."""
        left, top, width, height = face.box
        side = max(1, round(max(width, height) * (1 + 2 * margin)))
        tilt = _tilt(face)
        return cls(round(left + (width - side) / 2), round(top + (height - side) / 2), side, tilt)

    @property
    def middle(self) -> tuple[float, float]:
        """The point that it turns about."""
        return self.left + self.side / 2, self.top + self.side / 2

    def refusal(self, width: int, height: int, min_side: int, max_pixels: int) -> str | None:
        """Return why it cannot be cut from an image of `width` x `height` pixels, or None."""
        x, y = self.middle
        if not (0 <= x <= width and 0 <= y <= height):
            return f"crop {self} lies outside the image of {width}x{height} pixels"
        if self.side**2 > max_pixels:
            return f"crop {self} has more pixels than the limit of {max_pixels}"
        return f"crop {self} is smaller than {min_side} pixels" if self.side < min_side else None

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the square of an RGB image, upright, side x side pixels."""
        if not self.tilt:
            return _padded(image, self.left, self.top, self.side)
        # Wide enough for every turn; the border of a pixel is for the bilinear reading.
        reach = math.ceil(self.side * math.sqrt(0.5)) + 2
        x, y = self.middle
        left, top = math.floor(x) - reach, math.floor(y) - reach
        around = _padded(image, left, top, 2 * reach + 1)
        cos, sin = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        half = self.side / 2
        turn = (
            *(cos, -sin, x - left - half * (cos - sin)),
            *(sin, cos, y - top - half * (sin + cos)),
        )
        return around.transform((self.side, self.side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)

    def shares(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of a face's box (left, top, width, height) in shares of the cut square.

        A tilted face is upright in the square, and so is its box: its middle turns, its sides keep their length.
        """
        left, top, width, height = box
        dx, dy = left + width / 2 - self.middle[0], top + height / 2 - self.middle[1]
        cos, sin = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        x, y = 0.5 + (cos * dx + sin * dy) / self.side, 0.5 + (cos * dy - sin * dx) / self.side
        w, h = width / self.side / 2, height / self.side / 2
        left, top, right, bottom = (min(max(v, 0.0), 1.0) for v in (x - w, y - h, x + w, y + h))
        return left, top, right, bottom


Crop = Box | Square


def parse_crop(text: str) -> Crop | None:
    """Read "left,top,width,height", or "left,top,side@tilt" of a square; the empty string is no crop.

    Raises:
        ValueError: neither, or an empty one.
    """
    if not text:
        return None
    square = _SQUARE.fullmatch(text.strip())
    if square is not None and int(square[3]) > 0:
        return Square(int(square[1]), int(square[2]), int(square[3]), float(square[4]))
    parts = [int(p) for p in text.split(",")] if "@" not in text else []
    if len(parts) != 4 or parts[2] <= 0 or parts[3] <= 0 or parts[0] < 0 or parts[1] < 0:
        raise ValueError(
            f"crop {text!r} is not left,top,width,height with a positive width and height (nor left,top,side@tilt)"
        )
    return Box(*parts)


def _tilt(face: Face) -> float:
    if face.landmarks is None:
        return 0.0
    (x0, y0), (x1, y1) = face.landmarks[_RIGHT_EYE], face.landmarks[_LEFT_EYE]
    tilt = round(math.degrees(math.atan2(y1 - y0, x1 - x0)), 1)
    return tilt if abs(tilt) >= _LEAST_TILT else 0.0


def _padded(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """Return `side` x `side` pixels from (left, top), the image's border repeated beyond it."""
    right, bottom = left + side, top + side
    x0, y0 = min(max(left, 0), image.width - 1), min(max(top, 0), image.height - 1)
    x1, y1 = max(x0 + 1, min(right, image.width)), max(y0 + 1, min(bottom, image.height))
    inside = image.crop((x0, y0, x1, y1))
    margins = ((max(0, y0 - top), max(0, bottom - y1)), (max(0, x0 - left), max(0, right - x1)), (0, 0))
    if not any(a or b for a, b in margins):
        return inside
    # The part inside may be a single line when the square only touches the image: never more than `side` is wanted.
    return Image.fromarray(np.pad(np.asarray(inside), margins, mode="edge")[:side, :side])
