"""Drawn faces for the demo and the tests: eight expressions, long-tailed, blended, with a simulated crowd's votes.

Everything about face `index` follows from `(seed, index)` alone, so asking for more faces never changes the first ones.
"""

import csv
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from annotator.ingest.expressions import UNUSABLE, draw_mood, draw_votes, expression_at
from annotator.ingest.face_drawing import FaceDrawing
from annotator.ingest.face_model import draw_person, draw_scene
from annotator.taxonomy import FERPLUS

FACES_PER_PERSON = 4
VALIDATION_EVERY = 8
"""One person in this many is kept for validation, so that nobody is on both sides."""
MIN_SIZE = 96
DEFAULT_SIZE = 112
_UNUSABLE_SHARE = 0.025
_CHUNK = 16
_WORTH_PROCESSES = 128
_COLUMNS = ("path", "label", "split", "subject_id", *FERPLUS.slugs, UNUSABLE)


@dataclass(frozen=True, slots=True)
class DemoFace:
    """One drawn face. `blend` in [0, 0.5] is the share of `second`; `expression` may be "unusable"."""

    image: Image.Image
    expression: str
    second: str
    blend: float
    votes: dict[str, int]


def render(seed: int, index: int, size: int = DEFAULT_SIZE) -> DemoFace:
    """Draw face `index` of the series `seed`, size x size RGB.

    Raises:
        ValueError: a negative seed or index, or a size below `MIN_SIZE`.
    """
    if seed < 0 or index < 0 or size < MIN_SIZE:
        raise ValueError(f"seed {seed} and index {index} must be at least 0 and size {size} at least {MIN_SIZE}")
    person = draw_person(np.random.default_rng([seed, 1, index // FACES_PER_PERSON]))
    rng = np.random.default_rng([seed, 2, index])
    scene = draw_scene(rng)
    mood = draw_mood(rng, expression_at(seed, index))
    unusable = rng.random() < _UNUSABLE_SHARE
    drawing = FaceDrawing(person, scene, mood.units, size)
    if unusable:
        _spoil(drawing, rng)
        image = drawing.finished(rng)
        return DemoFace(image, UNUSABLE, UNUSABLE, 0.0, draw_votes(rng, None))
    drawing.draw()
    return DemoFace(drawing.finished(rng), mood.expression, mood.second, mood.blend, draw_votes(rng, mood))


def plurality(votes: dict[str, int]) -> str:
    """Return the slug with the most votes; ties go to the first in the order of the FER+ classes."""
    order = (*FERPLUS.slugs, UNUSABLE)
    return max(order, key=lambda slug: (votes.get(slug, 0), -order.index(slug)))


def generate(
    folder: Path,
    count: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    size: int = DEFAULT_SIZE,
) -> Path:
    """Write `count` faces as JPEG files and their `manifest.csv` (columns path, label, split, subject_id and votes).

    The label is the crowd's plurality. Returns the manifest's path; `progress` receives (done, total).

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, _CHUNK)
    draw = partial(_write_chunk, images, seed, size, count)
    manifest = folder / "manifest.csv"
    unfinished = folder / ".manifest.csv"  # the list appears when every face is there
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        if count < _WORTH_PROCESSES:
            _collect(map(draw, starts), writer, count, progress)
        else:
            with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), mp_context=get_context("spawn")) as pool:
                _collect(pool.map(draw, starts), writer, count, progress)
    unfinished.replace(manifest)
    return manifest


def _collect(
    chunks: Iterable[list[dict[str, str | int]]],
    writer: "csv.DictWriter[str]",
    count: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    done = 0
    for rows in chunks:
        writer.writerows(rows)
        done += len(rows)
        if progress is not None:
            progress(done, count)


def _write_chunk(images: Path, seed: int, size: int, count: int, start: int) -> list[dict[str, str | int]]:
    """Draw and write the faces from `start` on; return their manifest rows."""
    rows: list[dict[str, str | int]] = []
    for index in range(start, min(start + _CHUNK, count)):
        face = render(seed, index, size)
        name = f"face{index:06d}.jpg"
        face.image.save(images / name, quality=92)
        person = index // FACES_PER_PERSON
        votes = {slug: face.votes.get(slug, 0) for slug in (*FERPLUS.slugs, UNUSABLE)}
        split = "val" if person % VALIDATION_EVERY == VALIDATION_EVERY // 2 else "pool"
        rows.append(
            {
                "path": f"images/{name}",
                "label": plurality(face.votes),
                "split": split,
                "subject_id": f"person{person:05d}",
                **votes,
            }
        )
    return rows


def _spoil(drawing: FaceDrawing, rng: np.random.Generator) -> None:
    """Draw a picture without a usable face: nothing, a thing, or a face behind a hand or far out of focus."""
    kind = int(rng.integers(4))
    side, pen = drawing.side, drawing.pen
    if kind <= 1:
        drawing.has_head = False
        drawing.image.paste(drawing.scene.background[0], (0, 0, side, side))
        for _ in range(4 * kind):
            x, y = rng.uniform(0, side, 2)
            r = rng.uniform(0.05, 0.3) * side
            box = (x - r, y - r, x + r, y + r)
            color = tuple(int(v) for v in rng.integers(20, 230, 3))
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=color)
    elif kind == 2:
        drawing.draw()
        drawing.image.paste(drawing.image.filter(ImageFilter.GaussianBlur(side / 9)))
    else:
        drawing.draw()
        hand = ImageDraw.Draw(drawing.image)
        skin = drawing.person.skin
        left, top = 0.22 * side, rng.uniform(0.22, 0.3) * side
        hand.rounded_rectangle((left, top + 0.3 * side, 0.8 * side, 1.1 * side), 0.1 * side, fill=skin)
        for k in range(4):
            x = left + 0.146 * side * k
            finger = (x, top, x + 0.13 * side, top + 0.6 * side)
            hand.rounded_rectangle(finger, 0.06 * side, fill=skin, outline=(60, 40, 30))
