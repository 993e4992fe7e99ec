"""Turn the bytes of a file into pixels, or into the reason why not. No file is trusted.

This module imports nothing but Pillow and numpy, so that a decoding process starts quickly.
"""

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG with a preview or depth map behind it, as phones write
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "GIF": "image/gif",
}
_MAY_ANIMATE = ("PNG", "WEBP", "GIF")
EXTENSIONS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
}
UNSUPPORTED_EXTENSIONS = frozenset(
    {".tif", ".tiff", ".heic", ".heif", ".avif", ".svg", ".ico", ".psd", ".jp2", ".apng"}
)
_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
)
_OWN_SIGNATURES = ((b"\x89PNG", "PNG"), (b"\xff\xd8", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"RIFF", "WEBP"))
# What Pillow's parsers raise on hostile or broken files, beyond OSError.
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may be at most (bytes, pixels) and at least (shorter side) to be imported."""

    max_bytes: int
    max_pixels: int
    min_side: int


class Box(NamedTuple):
    """A crop in pixels of the upright image."""

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.width},{self.height}"

    @classmethod
    def parse(cls, text: str) -> "Box | None":
        """Read "left,top,width,height"; the empty string is no crop.

        Raises:
            ValueError: not four whole numbers, or an empty box.
        """
        if not text:
            return None
        parts = [int(p) for p in text.split(",")]
        if len(parts) != 4 or parts[2] <= 0 or parts[3] <= 0 or parts[0] < 0 or parts[1] < 0:
            raise ValueError(f"crop {text!r} is not left,top,width,height with a positive width and height")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a file is kept out."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A good image.

    `pixels` is RGB uint8 (size, size, 3). `content_hash` is the SHA-256 of the upright RGB pixels at full resolution
    and their shape: two files with the same picture in them share it. `misnamed`: the extension promised another type.
    """

    pixels: NDArray[np.uint8]
    content_hash: str
    width: int
    height: int
    media_type: str
    misnamed: bool


def decode(data: bytes, name: str, size: int, limits: Limits, crop: Box | None = None) -> Decoded | Quarantine:
    """Decode one image under `limits` and resize it to `size` x `size`, antialiased and without keeping the aspect.

    EXIF orientation is applied, transparency is laid on white, 16-bit values keep their high byte. A supported image
    under another extension is accepted as what it is.
    """
    if not data:
        return Quarantine("the file is empty")
    if len(data) > limits.max_bytes:
        return Quarantine(f"the file has {len(data)} bytes; the limit is {limits.max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked or refused below
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                refusal = _refusal(image, limits)
                if refusal is not None:
                    return refusal
                media_type = _MEDIA_TYPES[image.format or ""]
                image.load()
                upright = to_rgb(_upright(image))
        except UnidentifiedImageError:
            return Quarantine(_what(data))
        except Image.DecompressionBombError:
            return Quarantine(f"the image has more pixels than the limit of {limits.max_pixels}")
        except _BROKEN as error:
            return Quarantine(f"broken image: {_short(error)}")
    return _finish(upright, name, size, limits, crop, media_type)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as 8-bit RGB: the high byte of 16-bit values, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _refusal(image: Image.Image, limits: Limits) -> Quarantine | None:
    """Judge by the header alone, before any pixel is decompressed."""
    width, height = image.size
    if width * height > limits.max_pixels:
        return Quarantine(f"the image is {width}x{height} pixels; the limit is {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side:
        return Quarantine(f"the image is {width}x{height} pixels; its shorter side must be at least {limits.min_side}")
    if image.format in _MAY_ANIMATE and getattr(image, "is_animated", False):
        return Quarantine(f"the image is animated ({getattr(image, 'n_frames', 0)} frames); only still images are used")
    return None


def _upright(image: Image.Image) -> Image.Image:
    if not any(key in image.info for key in _ORIENTED):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image  # unreadable metadata says nothing against the picture


def _finish(
    upright: Image.Image, name: str, size: int, limits: Limits, crop: Box | None, media_type: str
) -> Decoded | Quarantine:
    if crop is not None:
        if crop.left + crop.width > upright.width or crop.top + crop.height > upright.height:
            return Quarantine(f"crop {crop} lies outside the image of {upright.width}x{upright.height} pixels")
        if min(crop.width, crop.height) < limits.min_side:
            return Quarantine(f"crop {crop} is smaller than {limits.min_side} pixels")
        upright = upright.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    digest = hashlib.sha256(f"RGB {upright.width}x{upright.height}\n".encode())
    digest.update(upright.tobytes())
    small = upright if upright.size == (size, size) else upright.resize((size, size), Image.Resampling.BILINEAR)
    dot = name.rfind(".")
    promised = EXTENSIONS.get(name[dot:].lower()) if dot >= 0 else None
    return Decoded(
        pixels=np.asarray(small, dtype=np.uint8),
        content_hash=digest.hexdigest(),
        width=upright.width,
        height=upright.height,
        media_type=media_type,
        misnamed=promised != media_type,
    )


def _what(data: bytes) -> str:
    """Say what a file that is no supported image seems to be."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return f"not a supported image: it looks like {kind}"
    for signature, format in _OWN_SIGNATURES:
        if data.startswith(signature):
            return f"broken image: damaged or shortened {format} header"
    if data[4:8] == b"ftyp":
        return "not a supported image: it looks like a HEIC, AVIF or video file"
    start = data[:256].lstrip().lower()
    if start.startswith((b"<svg", b"<?xml")):
        return "not a supported image: it looks like SVG or XML"
    if start.startswith((b"<!doctype", b"<html", b"<script")):
        return "not a supported image: it looks like HTML"
    return f"not an image that can be read ({', '.join(_FORMATS)} are)"


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
