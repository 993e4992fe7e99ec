"""Every kind of bad file is told apart from a good one, and every good one becomes the same RGB pixels."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotator.ingest.crops import Box, parse_crop
from annotator.ingest.decode import Decoded, Limits, Quarantine, decode
from tests.ingest.builders import encoded, picture

LIMITS = Limits(max_bytes=200_000, max_pixels=10_000, min_side=16)
GOOD = encoded(picture(1))


def refused(data: bytes, name: str = "a.png", **options: Box) -> str:
    outcome = decode(data, name, 24, LIMITS, **options)
    assert isinstance(outcome, Quarantine), outcome
    return outcome.reason


def good(data: bytes, name: str = "a.png", size: int = 24, **options: Box) -> Decoded:
    outcome = decode(data, name, size, LIMITS, **options)
    assert isinstance(outcome, Decoded), outcome
    return outcome


def animated(format: str) -> bytes:
    frames = [picture(n) for n in range(3)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pixels_come_back_as_they_were() -> None:
    outcome = good(GOOD)
    assert np.array_equal(outcome.pixels, np.asarray(picture(1)))
    assert (outcome.width, outcome.height, outcome.media_type, outcome.misnamed) == (24, 24, "image/png", False)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (GOOD[: len(GOOD) // 2], "broken image"),
        (encoded(picture(1), "JPEG")[:-200], "broken image"),
        (GOOD[:40] + bytes(40) + GOOD[80:], "broken image"),
        (b"hello, I am text", "not an image"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x7fELF" + bytes(50), "program"),
        (b"<html><script>alert(1)</script>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0 ftypheic", "HEIC"),
        (encoded(picture(1), "TIFF"), "TIFF"),
        (encoded(picture(1), "ICO"), "not an image"),
        (b"\x00" * 5000, "not an image"),
        (bytes(LIMITS.max_bytes + 1), "bytes"),
        (encoded(picture(1, side=101)), "101x101"),
        (encoded(picture(1, side=15)), "shorter side"),
        (png_bomb(60_000, 60_000), "10000"),
        (png_bomb(9_000, 9_000), "10000"),
        (animated("GIF"), "animated (3 frames)"),
        (animated("WEBP"), "animated (3 frames)"),
        (animated("PNG"), "animated (3 frames)"),
    ],
)
def test_bad_files_are_refused_with_their_reason(data: bytes, expected: str) -> None:
    assert expected in refused(data)


def test_a_still_gif_webp_and_bmp_are_fine() -> None:
    for format, media_type in (("GIF", "image/gif"), ("WEBP", "image/webp"), ("BMP", "image/bmp")):
        outcome = good(encoded(picture(1), format), f"a.{format.lower()}")
        assert outcome.media_type == media_type
        assert not outcome.misnamed


def test_another_extension_is_accepted_as_what_it_is_and_told() -> None:
    outcome = good(encoded(picture(1), "JPEG"), "a.png")
    assert outcome.media_type == "image/jpeg"
    assert outcome.misnamed


def test_equal_pictures_share_a_hash_across_formats_and_sizes_do_not() -> None:
    assert good(GOOD).content_hash == good(encoded(picture(1), "BMP"), "a.bmp").content_hash
    assert good(GOOD).content_hash == good(GOOD, size=48).content_hash
    assert good(GOOD).content_hash != good(encoded(picture(2))).content_hash
    flat = Image.new("RGB", (20, 30))
    assert good(encoded(flat)).content_hash != good(encoded(flat.transpose(Image.Transpose.ROTATE_90))).content_hash


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("RGB", (24, 24), (0, 0, 0)).convert(mode)
    format = "JPEG" if mode == "CMYK" else "PNG"
    outcome = good(encoded(source, format), f"a.{format.lower()}")
    assert outcome.pixels.shape == (24, 24, 3)
    assert outcome.pixels.max() <= 8


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.full((24, 24), 0x8040, dtype=np.uint16)
    assert set(np.unique(good(encoded(Image.fromarray(values))).pixels)) == {0x80}


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (24, 24), (10, 20, 30, 0))
    assert good(encoded(clear)).pixels.min() == 255
    palette = Image.new("P", (24, 24), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert good(encoded(palette, transparency=0)).pixels.min() == 255


def test_exif_orientation_is_applied() -> None:
    source = Image.new("RGB", (30, 20))
    source.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90 degrees clockwise
    outcome = good(encoded(source, "PNG", exif=exif), size=24)
    assert (outcome.width, outcome.height) == (20, 30)
    assert outcome.pixels[0, 12].tolist() == [255, 0, 0]
    assert outcome.pixels[-1, 12].tolist() == [0, 0, 0]
    upright = source.transpose(Image.Transpose.ROTATE_270)
    assert outcome.content_hash == good(encoded(upright)).content_hash


def test_a_crop_is_an_image_of_its_own() -> None:
    source = picture(3, side=60)
    box = Box(10, 20, 30, 25)
    outcome = good(encoded(source), crop=box)
    assert (outcome.width, outcome.height) == (30, 25)
    assert outcome.content_hash == good(encoded(source.crop((10, 20, 40, 45)))).content_hash
    assert "outside" in refused(encoded(source), crop=Box(40, 0, 30, 30))
    assert "smaller" in refused(encoded(source), crop=Box(0, 0, 10, 30))


def test_downsizing_is_antialiased() -> None:
    board = np.indices((96, 96)).sum(axis=0) % 2 * 255
    outcome = good(encoded(Image.fromarray(board.astype(np.uint8))), size=24)
    assert outcome.pixels[4:-4, 4:-4].std() < 20


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_escape_as_an_exception(noise: bytes) -> None:
    assert isinstance(decode(noise, "a.png", 24, LIMITS), Quarantine)


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
def test_a_damaged_byte_gives_pixels_or_a_reason(position: int, value: int, format: str) -> None:
    data = bytearray(encoded(picture(1), format))
    data[position % len(data)] = value
    outcome = decode(bytes(data), "a.png", 24, LIMITS)
    assert isinstance(outcome, Quarantine) or outcome.pixels.shape == (24, 24, 3)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,0,0,5", "-1,0,5,5", "0,0,5,5,5"])
def test_a_malformed_crop_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"crop|invalid literal"):
        parse_crop(text)


def test_a_crop_survives_its_text() -> None:
    assert parse_crop(str(Box(1, 2, 3, 4))) == Box(1, 2, 3, 4)
    assert parse_crop("") is None


def test_the_first_picture_of_a_phone_jpeg_counts() -> None:
    buffer = BytesIO()
    picture(1).save(buffer, "MPO", save_all=True, append_images=[picture(2)])
    assert good(buffer.getvalue(), "a.jpg").media_type == "image/jpeg"
