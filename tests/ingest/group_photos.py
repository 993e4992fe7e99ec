"""Photos made of demo faces at known places, and pictures without a face."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from annotator.ingest.demo_faces import render
from annotator.ingest.expressions import UNUSABLE
from annotator.ingest.face_model import Head, draw_scene
from tests.ingest.builders import encoded, picture

Box = tuple[float, float, float, float]
CELL = 200
_MIDDLE, _REACH = (0.0, 0.1), 1.0  # of a face from brows to chin, in units of the drawing


def drawn_face(seed: int, index: int, size: int) -> tuple[Image.Image, Box] | None:
    """Draw a face and say where it is in the picture: left, top, width, height. None for an unusable picture."""
    face = render(seed, index, size)
    if face.expression == UNUSABLE:
        return None
    head = Head(draw_scene(np.random.default_rng([seed, 2, index])), size)
    x, y = head.flat(np.array([_MIDDLE]))
    reach = _REACH * head.unit
    return face.image, (x - reach, y - reach, 2 * reach, 2 * reach)


def group_photo(seed: int, columns: int = 3, rows: int = 2) -> tuple[Image.Image, list[Box]]:
    """Paste faces of 112 to 180 pixels into the cells of a photo; return it and their places, row by row."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, rows * CELL)[:, None, None] + np.zeros((1, columns * CELL, 3))
    photo = Image.fromarray((ramp + rng.normal(0, 3, ramp.shape)).clip(0, 255).astype(np.uint8))
    places: list[Box] = []
    index = 1000 * seed
    while len(places) < columns * rows:
        size = int(rng.integers(112, 181))
        drawn, index = drawn_face(7, index, size), index + 4  # four pictures show one person
        if drawn is None:
            continue
        row, column = divmod(len(places), columns)
        left = column * CELL + int(rng.integers(0, CELL - size + 1))
        top = row * CELL + int(rng.integers(0, CELL - size + 1))
        photo.paste(drawn[0], (left, top))
        x, y, w, h = drawn[1]
        places.append((left + x, top + y, w, h))
    return photo, places


def drawing(seed: int, side: int = 240) -> Image.Image:
    """Draw a house in a landscape: something, but no face."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (150, 190, 230))
    pen = ImageDraw.Draw(image)
    ground, left = side * 0.6, side * rng.uniform(0.15, 0.4)
    pen.rectangle((0, ground, side, side), fill=(90, 140, 70))
    pen.rectangle((left, ground - 60, left + 90, ground + 20), fill=(180, 120, 90))
    pen.polygon([(left - 10, ground - 60), (left + 100, ground - 60), (left + 45, ground - 110)], fill=(120, 50, 40))
    return image


def photo_folder(root: Path) -> Path:
    """Make a folder with two group photos, a drawing, a blank, a noisy and a broken image."""
    root.mkdir(parents=True)
    group_photo(1)[0].save(root / "a-group.png")
    group_photo(2, columns=2, rows=1)[0].save(root / "b-pair.jpg", quality=95)
    drawing(1).save(root / "c-drawing.png")
    Image.new("RGB", (200, 160), "white").save(root / "d-blank.png")
    picture(3, side=150).save(root / "e-noise.png")
    (root / "f-broken.png").write_bytes(encoded(picture(4))[:300])
    return root
