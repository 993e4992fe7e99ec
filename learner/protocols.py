"""The papers' protocols: which training images are labeled, and the data sets they are drawn from (ALGORITHMS.md 13.1).

Every draw is nested: with one seed, 400 labels contain the 96, so that learning curves compare like with like.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from learner import draws
from learner.data import Rows
from learner.errors import InputError
from learner.manifest import SPLITS, Manifest, majority, plurality, read_ferplus

Protocol = Literal["leaf", "adacm", "lion_script", "imbalance", "percent", "per_class", "all"]
Kind = Literal["ferplus", "rafdb", "affectnet7", "affectnet8", "csv", "folder"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
AFFECTNET8 = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
RAFDB_LIST = "list_patition_label.txt"
ADACM = {100: (10, 15), 400: (40, 60), 1000: (100, 150), 2000: (200, 300), 4000: (250, 625)}  # fear, each other
LION_SCRIPT = {2000: (182, 303)}


def imbalanced_counts(n1: int, gamma: float, num_classes: int) -> list[int]:
    """Return ReMoP's labels by class rank, largest class first: N_k = floor(n1 * gamma^(-(k-1)/(K-1))).

    The last class has floor(n1 / gamma). ALGORITHMS.md 7 (d).

    Raises:
        ValueError: fewer than two classes, n1 < 1 or gamma < 1.
    """
    if num_classes < 2 or n1 < 1 or gamma < 1:
        raise ValueError(f"need num_classes >= 2, n1 >= 1, gamma >= 1; got {num_classes}, {n1}, {gamma}")
    middle = [int(n1 * gamma ** (-rank / (num_classes - 1)) + 1e-9) for rank in range(num_classes - 1)]
    return [*middle, int(n1 / gamma + 1e-9)]


def even_counts(total: int, num_classes: int) -> list[int]:
    """Return LEAF's floor(total / K) for every class.

    Raises:
        ValueError: fewer labels than classes.
    """
    if total < num_classes:
        raise ValueError(f"{total} labels are fewer than {num_classes} classes")
    return [total // num_classes] * num_classes


def fear_counts(total: int, classes: Sequence[str], table: dict[int, tuple[int, int]] | None = None) -> list[int]:
    """Return the counts of Ada-CM and LION on RAF-DB: fewer of fear than of each other class.

    Raises:
        ValueError: no such total in the papers, or no class fear.
    """
    known = ADACM if table is None else table
    if total not in known or "fear" not in classes:
        raise ValueError(
            f"the papers give counts for {', '.join(map(str, known))} labels with a class fear, not {total}"
        )
    fear, other = known[total]
    return [fear if name == "fear" else other for name in classes]


def percent_counts(percent: float, available: Sequence[int]) -> list[int]:
    """Return SSFER's max(1, round(p N_c)) per class, halves upward; 0 for a class without images.

    Raises:
        ValueError: percent outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent must lie in (0, 100], got {percent}")
    return [max(1, int(percent * n / 100 + 0.5 + 1e-9)) if n else 0 for n in available]


@dataclass(frozen=True, slots=True)
class LabelSplit:
    """One way of choosing labels: a protocol and its amount, in labels, percent, or labels of the largest class."""

    protocol: Protocol
    amount: float = 0
    gamma: float = 1.0

    @property
    def name(self) -> str:
        """Name in folders and tables, e.g. leaf-400, imbalance-1000-150."""
        parts = [self.protocol, *([f"{self.amount:g}"] if self.protocol != "all" else [])]
        return "-".join([*parts, f"{self.gamma:g}"] if self.protocol == "imbalance" else parts)

    def counts(self, manifest: Manifest) -> list[int]:
        """Return the labels wanted per class; a class may have fewer images, and then gives all.

        Raises:
            ValueError: the amount makes no sense for this protocol and data set.
        """
        available = available_counts(manifest)
        amount, num_classes = int(self.amount), len(manifest.classes)
        if self.protocol == "leaf":
            return even_counts(amount, num_classes)
        if self.protocol == "adacm":
            return fear_counts(amount, manifest.classes)
        if self.protocol == "lion_script":
            return fear_counts(amount, manifest.classes, LION_SCRIPT)
        if self.protocol == "percent":
            return percent_counts(self.amount, available)
        if self.protocol == "per_class":
            return even_counts(amount * num_classes, num_classes)
        if self.protocol == "imbalance":
            ranks = np.argsort(-np.array(available), kind="stable")  # ties by class index
            counts = np.empty(num_classes, np.int64)
            counts[ranks] = imbalanced_counts(amount, self.gamma, num_classes)
            return [int(n) for n in counts]
        return available

    def draw(self, manifest: Manifest, seed: int) -> Rows:
        """Draw the labeled training rows of one split seed, ascending.

        Raises:
            ValueError: as `counts`.
        """
        counts = dict(enumerate(self.counts(manifest)))
        return np.sort(draws.per_class(manifest.label, manifest.labeled("train"), counts, seed))


def available_counts(manifest: Manifest) -> list[int]:
    """Count the labeled training images per class."""
    counts = np.bincount(manifest.label[manifest.labeled("train")], minlength=len(manifest.classes))
    return [int(n) for n in counts]


def read_dataset(
    kind: Kind, source: Path, rule: Literal["plurality", "majority"] = "plurality", classes: Sequence[str] | None = None
) -> Manifest:
    """Read a data set: FER+ zip, RAF-DB or AffectNet folder, CSV manifest, or a folder of splits and classes.

    Raises:
        InputError: the source is missing or has another layout.
    """
    if not source.exists():
        raise InputError(f"no data at {source}")
    if kind == "ferplus":
        if not source.is_file():
            raise InputError(f"{source} is no file; a FER+ zip is needed")
        return read_ferplus(source, plurality if rule == "plurality" else majority)
    if kind == "csv":
        return Manifest.read(source, classes)
    readers: dict[str, Callable[[Path], Manifest]] = {"rafdb": read_rafdb, "folder": read_folder}
    if kind in readers:
        return readers[kind](source)
    return read_affectnet(source, AFFECTNET8[: 7 if kind == "affectnet7" else 8])


def read_rafdb(root: Path) -> Manifest:
    """Read RAF-DB's basic part: the list of labels, and aligned images where they are there. Test is split test.

    Raises:
        InputError: no list, no images, or a line that is not `name class`.
    """
    found = next(
        (root / p / RAFDB_LIST for p in ("EmoLabel", "", "basic/EmoLabel") if (root / p / RAFDB_LIST).is_file()), None
    )
    if found is None:
        raise InputError(f"{root} holds no {RAFDB_LIST} (looked in ., EmoLabel and basic/EmoLabel)")
    base = root / "basic" if found.parent == root / "basic" / "EmoLabel" else root
    places = [base / p for p in ("Image/aligned", "Image/original", "aligned", "original")]
    images = next((p for p in places if p.is_dir()), None)
    if images is None:
        raise InputError(f"{root} holds no images in {', '.join(map(str, places))}")
    names, labels, splits = [], [], []
    for number, line in enumerate(found.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        split = next((s for s in ("train", "test") if fields[0].startswith(s)), None)
        if len(fields) != 2 or fields[1] not in {str(n) for n in range(1, len(RAFDB) + 1)} or split is None:
            raise InputError(f"{found} line {number}: {line!r} is not 'train_… or test_… class' with a class of 1 to 7")
        name = Path(fields[0])
        file = f"{name.stem}_aligned{name.suffix}" if images.name == "aligned" else fields[0]
        names.append(str((images / file).resolve()))
        labels.append(int(fields[1]) - 1)
        splits.append(SPLITS.index(split))
    if not names:
        raise InputError(f"{found} lists no image")
    return Manifest(found, RAFDB, names, np.array(labels, np.int64), np.array(splits, np.int64))


def read_affectnet(root: Path, classes: Sequence[str]) -> Manifest:
    """Read AffectNet's `training.csv` and `validation.csv`; faces are cut out by their boxes.

    Images of other classes than `classes` (contempt with seven, none, uncertain, no face) are left out.

    Raises:
        InputError: a list is missing or has a row that cannot be read.
    """
    inside = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
    images = next((root / p for p in inside if (root / p).is_dir()), root)
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    for split, name in (("train", "training.csv"), ("val", "validation.csv")):
        for line, record in enumerate(_records(root / name), 2):
            try:
                code = int(record["expression"])
                path = record["subDirectory_filePath"]
                box = _box(record)
            except (KeyError, ValueError) as error:
                raise InputError(f"{root / name} line {line}: cannot read {error}") from error
            if 0 <= code < len(classes):
                names.append(str((images / path).resolve()))
                labels.append(code)
                splits.append(SPLITS.index(split))
                boxes.append(box)
    if not names:
        raise InputError(f"{root}: the lists name no image of {', '.join(classes)}")
    label, split_of = np.array(labels, np.int64), np.array(splits, np.int64)
    return Manifest(root / "training.csv", tuple(classes), names, label, split_of, np.array(boxes, np.int64))


def _records(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _box(record: dict[str, str]) -> tuple[int, int, int, int]:
    texts = [(record.get(f"face_{part}") or "").strip() for part in ("x", "y", "width", "height")]
    if not all(texts) or "NULL" in map(str.upper, texts):
        return (0, 0, 0, 0)
    left, top, width, height = (int(float(text)) for text in texts)
    return (left, top, width, height)


def read_folder(root: Path) -> Manifest:
    """Read `<split>/<class>/<image>` with splits train, val, test; classes in alphabetical order.

    Raises:
        InputError: no image in that layout, or fewer than two classes.
    """
    found = sorted(
        p for p in root.glob("*/*/*") if p.is_file() and p.parts[-3] in SPLITS and not p.name.startswith(".")
    )
    classes = tuple(sorted({p.parts[-2] for p in found}))
    if len(classes) < 2:
        raise InputError(
            f"{root} has {len(classes)} classes in the layout train|val|test/<class>/<image>; two are needed"
        )
    label = np.array([classes.index(p.parts[-2]) for p in found], np.int64)
    split = np.array([SPLITS.index(p.parts[-3]) for p in found], np.int64)
    return Manifest(root, classes, [str(p.resolve()) for p in found], label, split)
