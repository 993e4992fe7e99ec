"""Turn the bytes of a file into pixels, or into the reason why not. No file is trusted.

This module imports little but Pillow and numpy, so that a decoding process starts quickly.
"""

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from annotator.ingest.crops import Crop, Square

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
_SHARP_SIDE = 64
_ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may be at most (bytes, pixels) and at least (shorter side) to be imported."""

    max_bytes: int
    max_pixels: int
    min_side: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a file is kept out."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A good image.

    `pixels` is RGB uint8 (size, size, 3). `content_hash` is the SHA-256 of the upright RGB pixels at full resolution
    and their shape: two files with the same picture in them share it. `misnamed`: the extension promised another type.
    `sharpness` is measured on the squares cut for faces alone.
    """

    pixels: NDArray[np.uint8]
    content_hash: str
    width: int
    height: int
    media_type: str
    misnamed: bool
    sharpness: float | None = None


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded image as a person sees it: RGB, turned as its camera said."""

    image: Image.Image
    media_type: str
    misnamed: bool


def decode(data: bytes, name: str, size: int, limits: Limits, crop: Crop | None = None) -> Decoded | Quarantine:
    """Decode one image under `limits` and resize it to `size` x `size`, antialiased and without keeping the aspect.

    EXIF orientation is applied, transparency is laid on white, 16-bit values keep their high byte. A supported image
    under another extension is accepted as what it is.
    """
    upright = open_upright(data, name, limits)
    return upright if isinstance(upright, Quarantine) else take(upright, size, limits, crop)


def open_upright(data: bytes, name: str, limits: Limits) -> Upright | Quarantine:
    """Do the first half of `decode`: the whole image, upright, at full resolution."""
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
                upright = to_rgb(_turned(image))
        except UnidentifiedImageError:
            return Quarantine(_what(data))
        except Image.DecompressionBombError:
            return Quarantine(f"the image has more pixels than the limit of {limits.max_pixels}")
        except _BROKEN as error:
            return Quarantine(f"broken image: {_short(error)}")
    dot = name.rfind(".")
    promised = EXTENSIONS.get(name[dot:].lower()) if dot >= 0 else None
    return Upright(upright, media_type, promised != media_type)


def take(upright: Upright, size: int, limits: Limits, crop: Crop | None) -> Decoded | Quarantine:
    """Do the second half of `decode`: the part that `crop` names, hashed at full resolution and resized."""
    image = part(upright, limits, crop)
    if isinstance(image, Quarantine):
        return image
    small = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
    return Decoded(
        pixels=np.asarray(small, dtype=np.uint8),
        content_hash=content_hash(image),
        width=image.width,
        height=image.height,
        media_type=upright.media_type,
        misnamed=upright.misnamed,
        sharpness=sharpness(image) if isinstance(crop, Square) else None,
    )


def part(upright: Upright, limits: Limits, crop: Crop | None) -> Image.Image | Quarantine:
    """Return what `crop` names of an image, at full resolution: all of it where there is no crop."""
    image = upright.image
    if crop is None:
        return image
    refusal = crop.refusal(image.width, image.height, limits.min_side, limits.max_pixels)
    return crop.cut(image) if refusal is None else Quarantine(refusal)


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of the shape and the pixels of an RGB image."""
    digest = hashlib.sha256(f"RGB {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian over that of the brightness, at `_SHARP_SIDE` pixels a side at most.

    It does not change with contrast or light: white noise has 20, a blurred face near 0.
    """
    gray = image.convert("L")
    if max(gray.size) > _SHARP_SIDE:
        gray = gray.resize((_SHARP_SIDE, _SHARP_SIDE), Image.Resampling.BILINEAR)
    g = np.asarray(gray, dtype=np.float64)
    if min(g.shape) < 3:
        return 0.0
    middle = g[1:-1, 1:-1]
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * middle
    return float(laplacian.var() / max(middle.var(), 1.0))


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


def _turned(image: Image.Image) -> Image.Image:
    if not any(key in image.info for key in _ORIENTED):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image  # unreadable metadata says nothing against the picture


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
