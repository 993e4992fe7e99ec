"""Images without a workspace: a CSV of paths, labels and splits, or a zip in FER+ layout, turned into a run folder."""

import csv
import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from learner import draws
from learner.config import RunConfig, write_json
from learner.data import SHARD_BYTES, Rows, save_view, write_shards
from learner.errors import InputError
from learner.parts import LabelView

SPLITS = ("train", "val", "test")
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
_FERPLUS_FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
MAX_BYTES = 50_000_000
UNUSABLE = "unusable"  # a workspace's word for an image without a readable face: no class


@dataclass(frozen=True, slots=True)
class Manifest:
    """N images; row = position. names (N), label (N,) int64 or -1, split (N,) index into `SPLITS`.

    boxes (N,4) int64 left, top, width, height of the face in each image; width 0, or no boxes, for the whole image.
    faces (N,4) float64 left, top, width, height in pixels of the face in an image that is used whole, NaN where not
    known; None where no face is.
    """

    source: Path
    classes: tuple[str, ...]
    names: Sequence[str]
    label: NDArray[np.int64]
    split: NDArray[np.int64]
    boxes: NDArray[np.int64] | None = None
    faces: NDArray[np.float64] | None = None

    @classmethod
    def read(cls, path: Path, classes: Sequence[str] | None = None) -> "Manifest":
        """Read a CSV (`path,label,split[,votes][,box]`, paths relative to the file) or a FER+ zip.

        `votes` are counts per class in the order of `classes`, separated by semicolons; the most voted class is the
        label where `label` is empty. `box` is where the face lies: "left,top,width,height" in pixels.
        Without `classes` they are the labels that occur, in alphabetical order.

        Raises:
            InputError: the file is missing or malformed; the message names the line.
        """
        if not path.is_file():
            raise InputError(f"no manifest {path}")
        if zipfile.is_zipfile(path):
            return read_ferplus(path)
        try:
            return _read_csv(path, classes)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is no CSV: {error}") from error

    def rows(self, split: str) -> Rows:
        """Return the rows of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split)).astype(np.int64)

    def labeled(self, split: str) -> Rows:
        """Return the rows of a split that have a label, ascending."""
        rows = self.rows(split)
        return rows[self.label[rows] >= 0]


def _read_csv(path: Path, classes: Sequence[str] | None) -> Manifest:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(sorted(missing))}; needed: path,label,split[,votes]")
        records = list(reader)
    if not records:
        raise InputError(f"{path} lists no image")
    found = sorted({r["label"] for r in records if r["label"] not in ("", None, UNUSABLE)})
    known = tuple(classes) if classes else tuple(found)
    if len(known) < 2:
        raise InputError(f"{path} names {len(known)} classes ({', '.join(known)}); two or more are needed")
    names, labels, splits, faces = [], [], [], []
    for line, record in enumerate(records, start=2):
        label, split = record["label"] or "", record["split"] or ""
        unusable = label == UNUSABLE and UNUSABLE not in known
        split = "train" if split == "pool" else split  # a workspace's word for it
        if split not in SPLITS:
            raise InputError(f"{path} line {line}: split {split!r} is none of {', '.join(SPLITS)}, pool")
        if label and label not in known and not unusable:
            raise InputError(f"{path} line {line}: unknown class {label!r}; known: {', '.join(known)}")
        votes = _votes(record.get("votes") or "", len(known), f"{path} line {line}")
        labels.append(-1 if unusable else known.index(label) if label else votes)
        names.append(str((path.parent / record["path"]).resolve()))
        splits.append(SPLITS.index(split))
        faces.append(_face(record.get("box") or "", f"{path} line {line}"))
    label, split_of, boxes = np.array(labels, np.int64), np.array(splits, np.int64), np.array(faces, np.float64)
    return Manifest(path, known, names, label, split_of, faces=None if np.isnan(boxes).all() else boxes)


def _face(text: str, where: str) -> list[float]:
    """Return left, top, width, height; NaN where there is no text."""
    if not text:
        return [math.nan] * 4
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise InputError(f"{where}: box {text!r} is not left,top,width,height in pixels, the last two above 0")
    return box


def _votes(text: str, num_classes: int, where: str) -> int:
    """Return the most voted class, the first at a tie; -1 without votes."""
    if not text:
        return -1
    try:
        counts = [float(part) for part in text.split(";")]
    except ValueError as error:
        raise InputError(f"{where}: votes {text!r} are no numbers separated by semicolons") from error
    if len(counts) != num_classes or min(counts) < 0:
        raise InputError(f"{where}: {len(counts)} votes for {num_classes} classes, or a negative one")
    return int(np.argmax(counts)) if max(counts) > 0 else -1


def plurality(votes: NDArray[np.float64]) -> int:
    """Return the entry with the most of the votes (10,), the first at a tie; -1 for unknown, no face or no vote."""
    best = int(votes.argmax())
    return best if best < len(FERPLUS) and votes[best] > 0 else -1


def majority(votes: NDArray[np.float64]) -> int:
    """Drop single votes; return the entry with more than half of the rest, -1 where there is none or it is no class."""
    kept = np.where(votes > 1, votes, 0)
    best = int(kept.argmax())
    return best if best < len(FERPLUS) and 2 * kept[best] > kept.sum() else -1


def read_ferplus(path: Path, rule: Callable[[NDArray[np.float64]], int] = plurality) -> Manifest:
    """Read a FER+ zip; `rule` turns the votes (10,) for eight classes, unknown and no face into a class or -1.

    Raises:
        InputError: it is not in FER+ layout.
    """
    found = _read_ferplus(path)
    label = np.array([rule(votes) for votes, _ in found.values()], np.int64)
    return Manifest(path, FERPLUS, list(found), label, np.array([split for _, split in found.values()], np.int64))


def read_votes(path: Path) -> NDArray[np.float64]:
    """Return the votes (N,10) of a FER+ zip for eight classes, unknown and no face, by the rows of `read_ferplus`.

    Raises:
        InputError: it is not in FER+ layout.
    """
    return np.stack([votes for votes, _ in _read_ferplus(path).values()])


def _read_ferplus(path: Path) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Read votes (10,) and split of every image of a FER+ zip, each named once."""
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        if "fer2013new.csv" not in members:
            raise InputError(f"{path} has no fer2013new.csv; it is not in FER+ layout")
        table = list(csv.DictReader(io.StringIO(archive.read("fer2013new.csv").decode("utf-8-sig"))))
    found: dict[str, tuple[NDArray[np.float64], int]] = {}
    for record in table:
        member = f"{_FERPLUS_FOLDERS.get(record['Usage'], '')}/{record['Image name']}"
        if member in members and member not in found:
            votes = np.array([float(record[name]) for name in (*FERPLUS, "unknown", "NF")])
            found[member] = (votes, list(_FERPLUS_FOLDERS).index(record["Usage"]))
    if not found:
        raise InputError(f"{path} holds none of the images that its fer2013new.csv names")
    return found


def decode(data: bytes, size: int, name: str, box: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
    """Decode one image, or the `box` (left, top, width, height) of it, to RGB uint8 (size, size, 3), upright.

    Raises:
        InputError: it is no readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            if box is not None and box[2] > 0:
                left, top, width, height = box.tolist()
                upright = upright.crop((left, top, left + width, top + height))
            if upright.size != (size, size):
                upright = upright.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(upright, np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {name}: {error}") from error


def write_cache(
    manifest: Manifest,
    folder: Path,
    size: int,
    on_image: Callable[[int, int], None] | None = None,
    chosen: Rows | None = None,
) -> None:
    """Decode images into shards for rows 0 … N-1, in the order of `chosen` (all by default), one shard in memory.

    Raises:
        InputError: an image is missing, too large or unreadable.
    """
    rows = range(len(manifest.names)) if chosen is None else chosen.tolist()
    per_shard = max(1, SHARD_BYTES // (size * size * 3))
    archive = zipfile.ZipFile(manifest.source) if zipfile.is_zipfile(manifest.source) else None
    try:
        for start in range(0, len(rows), per_shard):
            block = []
            for row in rows[start : start + per_shard]:
                name, box = manifest.names[row], None if manifest.boxes is None else manifest.boxes[row]
                block.append(decode(archive.read(name) if archive else read_file(Path(name)), size, name, box))
                if on_image is not None:
                    on_image(start + len(block), len(rows))
            write_shards(folder, np.stack(block), start)
    finally:
        if archive is not None:
            archive.close()


def read_file(path: Path) -> bytes:
    """Read a file of at most `MAX_BYTES`.

    Raises:
        InputError: it is larger, or cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from error


def face_shares(manifest: Manifest, rows: Rows) -> NDArray[np.float32]:
    """Return left, top, right, bottom of the faces of `rows` as `boxes.npy` has them: (highest row + 1, 4) in [0, 1].

    NaN for rows that are not asked for or not known. The images are opened for their sizes.

    Raises:
        InputError: an image is missing or unreadable.
    """
    shares = np.full((int(rows.max(initial=-1)) + 1, 4), np.nan, np.float32)
    faces = np.full((len(manifest.names), 4), np.nan) if manifest.faces is None else manifest.faces
    for row in rows[np.isfinite(faces[rows]).all(axis=1)]:
        left, top, width, height = faces[row]
        try:
            with Image.open(manifest.names[row]) as image:
                sides = ImageOps.exif_transpose(image).size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"cannot read image {manifest.names[row]}: {error}") from error
        corners = np.array([left, top, left + width, top + height]) / (*sides, *sides)
        shares[row] = corners.clip(0, 1)
    return shares


def choose_labels(manifest: Manifest, per_class: int | None, seed: int) -> Rows:
    """Draw at most `per_class` labeled training rows of every class (all for None), ascending."""
    rows = manifest.labeled("train")
    if per_class is None:
        return rows
    return np.sort(draws.per_class(manifest.label, rows, dict.fromkeys(range(len(manifest.classes)), per_class), seed))


def make_run(manifest: Manifest, config: RunConfig, labeled: Rows, folder: Path, cache: Path) -> None:
    """Write the run folder of `learner.round`: every other training image is unlabeled.

    What is known of those, and `val`, is for reporting.

    Raises:
        InputError: no labeled training image.
    """
    if len(labeled) == 0:
        raise InputError(f"{manifest.source} has no labeled image in split train")
    num, num_classes = len(labeled), len(manifest.classes)
    given = torch.from_numpy(manifest.label[labeled])
    view = LabelView(
        label_seq=num,
        classes=manifest.classes,
        rows=torch.from_numpy(labeled),
        target=torch.nn.functional.one_hot(given, num_classes).float(),
        allowed=torch.ones(num, num_classes, dtype=torch.bool),
        excluded=torch.zeros(num, num_classes, dtype=torch.bool),
        given=given,
        locked=torch.zeros(num, dtype=torch.bool),
        stamp=torch.arange(1, num + 1),
    )
    save_view(folder / "view.npz", view)
    val = manifest.labeled("val")
    np.save(folder / "unlabeled.npy", np.setdiff1d(manifest.rows("train"), labeled))
    known = np.setdiff1d(manifest.labeled("train"), labeled)
    np.savez(folder / "known.npz", rows=known, truth=manifest.label[known])
    np.save(folder / "all.npy", np.union1d(manifest.rows("train"), val))
    if manifest.faces is not None:
        np.save(folder / "boxes.npy", face_shares(manifest, labeled))
    np.savez(folder / "eval.npz", rows=val, truth=manifest.label[val])
    write_json(folder / "pool.json", {"cache": str(cache), "previous": None, "image_size": config.image_size})
    config.save(folder / "config.json")


def source_key(manifest: Manifest) -> str:
    """Describe what a cache was made from, to refuse another's."""
    stat = manifest.source.stat()
    return json.dumps([str(manifest.source.resolve()), stat.st_size, stat.st_mtime_ns, len(manifest.names)])
