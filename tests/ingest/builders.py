"""Small images and data sets in every layout, made by the tests."""

import csv
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

FERPLUS_COLUMNS = (
    "Usage", "Image name", "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
    "unknown", "NF",
)  # fmt: skip


def picture(seed: int, side: int = 24, mode: str = "RGB") -> Image.Image:
    """Return a picture whose pixels follow from `seed`."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """Return the bytes of a file of `format`."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_picture(path: Path, seed: int, side: int = 24, format: str = "PNG") -> Path:
    """Write the picture of `seed`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed, side), format))
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def image_folder(root: Path) -> Path:
    """Make train/val/test with two classes each, a text file and a hidden one."""
    seed = 0
    for split in ("train", "val", "test"):
        for name in ("happiness", "Sad"):
            for number in range(2):
                write_picture(root / split / name / f"{number}.png", seed)
                seed += 1
    (root / "readme.txt").write_text("about")
    (root / "train" / ".hidden.png").write_bytes(b"x")
    return root


def ferplus_row(usage: str, name: str, **votes: int) -> dict[str, object]:
    """Return a row of the vote file."""
    row: dict[str, object] = dict.fromkeys(FERPLUS_COLUMNS, 0)
    return row | {"Usage": usage, "Image name": name} | votes


def ferplus_folder(root: Path) -> Path:
    """Make a small FER+ folder: four train, two valid (one a copy of a train image), a repeated and a missing row."""
    for number in range(4):
        write_picture(root / "FER2013Train" / f"fer{number}.png", number)
    write_picture(root / "FER2013Valid" / "fer10.png", 10)
    write_picture(root / "FER2013Valid" / "fer11.png", 0)
    write_csv(
        root / "fer2013new.csv",
        [
            ferplus_row("Training", "fer0.png", neutral=9, unknown=1),
            ferplus_row("Training", "fer1.png", fear=5, surprise=5),
            ferplus_row("Training", "fer0.png", neutral=9, unknown=1),
            ferplus_row("Training", "fer2.png", anger=2, unknown=3, NF=5),
            ferplus_row("Training", "fer3.png", contempt=10),
            ferplus_row("Training", "gone.png", happiness=10),
            ferplus_row("PublicTest", "fer10.png", happiness=10),
            ferplus_row("PublicTest", "fer11.png", neutral=10),
            ferplus_row("PrivateTest", "fer20.png", sadness=10),
        ],
    )
    return root


def rafdb_folder(root: Path) -> Path:
    """Make a small RAF-DB folder with the seven classes in order, six for training and one for the test."""
    names = [f"train_{n:05d}" for n in range(1, 7)] + ["test_0001"]
    for seed, name in enumerate(names):
        write_picture(root / "Image" / "aligned" / f"{name}_aligned.jpg", seed, format="JPEG")
    lines = [f"{name}.jpg {code}" for code, name in enumerate(names, 1)]
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    return root


def affectnet_folder(root: Path) -> Path:
    """Make a small AffectNet folder: two crops of one image, codes without a label, and one validation image."""
    write_picture(root / "Manually_Annotated_Images" / "1" / "a.png", 1, side=60)
    write_picture(root / "Manually_Annotated_Images" / "1" / "b.png", 2, side=60)
    box = ("face_x", "face_y", "face_width", "face_height")

    def row(path: str, code: int, *values: int) -> dict[str, object]:
        boxes = dict(zip(box, values, strict=True)) if values else dict.fromkeys(box, "NULL")
        return {"subDirectory_filePath": path, **boxes, "expression": code, "valence": "-2", "arousal": "-2"}

    write_csv(
        root / "training.csv",
        [
            row("1/a.png", 1, 0, 0, 30, 30),
            row("1/a.png", 6, 20, 20, 40, 40),
            row("1/b.png", 9),
            row("1/b.png", 10, 1, 1, 20, 20),
        ],
    )
    write_csv(root / "validation.csv", [row("1/b.png", 7, 5, 5, 50, 50)])
    return root
