"""Exports that are folders of images: imagefolder and ferplus."""

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from annotator.errors import InputError, WorkspaceError
from annotator.export.pictures import Pictures
from annotator.export.rows import FACE_COLUMNS, csv_row, face_row
from annotator.store.reading import Face
from annotator.taxonomy import FERPLUS

_PLACES = {
    "pool": ("Training", "FER2013Train"),
    "val": ("PublicTest", "FER2013Valid"),
    "test": ("PrivateTest", "FER2013Test"),
}
VOTE_FILE = "fer2013new.csv"
UNKNOWN, NO_FACE = "unknown", "NF"


def write_imagefolder(faces: Iterator[Face], out: Path, pictures: Pictures) -> int:
    """Copy labeled faces to `<out>/<split>/<class>/<image_id>.<ext>` with `labels.csv`; return how many.

    `split` is train, val or test; pool faces kept for validation go to `reserved`.
    """
    count = 0
    with complete_folder(out) as folder, open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *FACE_COLUMNS])
        for face in faces:
            if face.image.state != "active" or face.label.state != "labeled":
                continue
            split = "reserved" if face.reserved else {"pool": "train"}.get(face.image.split, face.image.split)
            data, suffix = pictures.read(face)
            name = f"{split}/{face.label.classes[0]}/{face.image.image_id}{suffix}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            writer.writerow([name, *csv_row(face_row(face), FACE_COLUMNS)])
            count += 1
    return count


def write_ferplus(faces: Iterator[Face], out: Path, pictures: Pictures, votes: Mapping[int, Mapping[str, int]]) -> int:
    """Write `fer2013new.csv` with answers as votes and the images as PNG in the three FER2013 folders; return how many.

    Each answer is a vote, each class of a candidate set gets one, unusable counts as NF. Faces that nobody answered are
    left out, except those of validation and test that came with votes of their own. Pool faces kept for validation go
    there, so that nothing trains on them.
    """
    count = 0
    with ExitStack() as stack:
        folder = stack.enter_context(complete_folder(out))
        file = stack.enter_context(open(folder / VOTE_FILE, "w", encoding="utf-8", newline=""))
        writer = csv.writer(file)
        writer.writerow(["Usage", "Image name", *FERPLUS.slugs, UNKNOWN, NO_FACE])
        for face in faces:
            cast = votes.get(face.image.group) or (face.truth_votes if face.image.split != "pool" else None)
            if face.image.state != "active" or not cast:
                continue
            usage, place = _PLACES["val" if face.reserved else face.image.split]
            name = f"fer{face.image.row:07d}.png"
            (folder / place).mkdir(exist_ok=True)
            (folder / place / name).write_bytes(pictures.png(face))
            writer.writerow([usage, name, *(cast.get(c, 0) for c in FERPLUS.slugs), 0, cast.get("unusable", 0)])
            count += 1
    return count


def check_ferplus_classes(classes: Sequence[str]) -> None:
    """Raise `InputError` when the workspace has a class that the FER+ layout has no column for."""
    foreign = [c for c in classes if c not in FERPLUS.slugs]
    if foreign:
        raise InputError(f"FER+ has no column for {', '.join(foreign)}; export as csv, jsonl, parquet or imagefolder")


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the block ends well, and is deleted otherwise.

    Raises:
        InputError: `out` holds something already, or its parent does not exist.
        WorkspaceError: it cannot be written, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already; name another folder, or empty it first")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to make {out.name} in")
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.exporting-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755 & ~_umask())
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    except OSError as error:
        raise WorkspaceError(f"cannot write {out}: {error.strerror or error}; nothing was exported") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
