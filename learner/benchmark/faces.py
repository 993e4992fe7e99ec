"""A benchmark's data sets, decoded once: pixels, truth, and which rows are evaluated and which select."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner.bank import FeatureBank
from learner.benchmark.grid import DatasetEntry
from learner.boxes import Boxes
from learner.config import write_json
from learner.data import PixelCache, Rows
from learner.duplicates import NEAR_BITS, find_copies
from learner.errors import InputError
from learner.manifest import Manifest, source_key, write_cache
from learner.protocols import read_dataset

SELECT_SHARE = 0.1
Told = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set ready for runs; `folder` holds `<size>/` pixel shards, `truth.npy` and `evaluation.npz`."""

    entry: DatasetEntry
    manifest: Manifest
    folder: Path
    evaluation: Rows
    selection: Rows
    bank: FeatureBank | None = None
    boxes: Boxes | None = None

    def on_bank(self, folder: Path) -> "Dataset":
        """Return the same data read from a feature bank.

        Raises:
            InputError: the folder is no finished bank, it was made from another source, or it lacks a row.
        """
        bank = FeatureBank(folder)
        note = folder / "source.json"
        if note.exists() and json.loads(note.read_text(encoding="utf-8"))["source"] != source_key(self.manifest):
            raise InputError(f"{folder} was made from another source than {self.manifest.source}")
        asked = np.union1d(self.evaluation, self.selection)
        if not bank.has(asked).all():
            raise InputError(f"{folder} lacks {int((~bank.has(asked)).sum())} of the evaluated images")
        return replace(self, bank=bank)

    def cache(self, size: int) -> Path:
        """Return the folder of pixels of one size."""
        return self.folder / str(size)

    @property
    def pool(self) -> Rows:
        """Training rows that a run may see, ascending."""
        return self.manifest.labeled("train") if self.entry.pool == "known" else self.manifest.rows("train")


def locate(source: str, config: Path) -> Path:
    """Find a source relative to the working directory or to the configuration file.

    Raises:
        InputError: it is in neither place.
    """
    places = [Path(source), config.parent / source]
    for place in places:
        if place.exists():
            return place
    raise InputError(f"no data at {source}; give its place with --data NAME=PATH")


def open_dataset(entry: DatasetEntry, source: Path, folder: Path, sizes: Sequence[int], told: Told) -> Dataset:
    """Read, decode and look for copies, each once; what is there already is used.

    Raises:
        InputError: the source is malformed, or the folder was made from another.
    """
    manifest = read_dataset(entry.kind, source, entry.rule, entry.classes)
    if len(manifest.labeled("train")) == 0:
        raise InputError(f"{source} has no labeled image in split train")
    if len(manifest.labeled(entry.evaluate)) == 0:
        raise InputError(f"{source} has no labeled image in split {entry.evaluate}")
    wanted = {"source": source_key(manifest), "rule": entry.rule, "evaluate": entry.evaluate, "pool": entry.pool}
    note = folder / "source.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != wanted:
        raise InputError(f"{folder} was made from another source or rule; choose another OUT")
    folder.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        _decode(manifest, folder / str(size), size, entry.name, told)
    if not note.exists():
        told(f"{entry.name}: look for copies", 0.0)
        np.save(folder / "truth.npy", manifest.label)
        report = _choose(manifest, entry, PixelCache(folder / str(sizes[0]), sizes[0]), folder / "evaluation.npz")
        write_json(folder / "copies.json", report)
        write_json(note, wanted)
    with np.load(folder / "evaluation.npz", allow_pickle=False) as data:
        return Dataset(entry, manifest, folder, data["rows"], data["selection"])


def _decode(manifest: Manifest, folder: Path, size: int, name: str, told: Told) -> None:
    done = folder / "complete"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_cache(manifest, folder, size, lambda n, total: told(f"{name}: read images", n / total))
    done.touch()


def _choose(manifest: Manifest, entry: DatasetEntry, cache: PixelCache, path: Path) -> dict[str, object]:
    """Leave copies of training images out of what is evaluated; choose the images that select a checkpoint.

    They are split val where test is reported on, and else a tenth of the evaluated ones, drawn per class with seed 0.
    """
    train, asked = manifest.rows("train"), manifest.labeled(entry.evaluate)
    other = manifest.labeled("val") if entry.evaluate == "test" else asked[:0]
    copies = find_copies(cache, np.union1d(asked, other), train)
    left_out = np.union1d(copies.exact, copies.near)
    other = np.setdiff1d(other, left_out)
    if len(other):
        twins = find_copies(cache, np.setdiff1d(asked, left_out), other)
        left_out = np.union1d(left_out, np.union1d(twins.exact, twins.near))
    rows = np.setdiff1d(asked, left_out)
    if len(rows) == 0:
        raise InputError(f"{manifest.source}: every evaluated image is a copy of a training image")
    selection = other if len(other) else stratified(rows, manifest.label, SELECT_SHARE)
    rest = np.setdiff1d(rows, selection)
    twins = find_copies(cache, rest, selection[:0] if len(other) else selection)
    kept_out = np.union1d(selection, np.union1d(twins.exact, twins.near))  # of the best-on-validation number
    np.savez(path, rows=rows, selection=selection, kept_out=kept_out, exact=copies.exact, near=copies.near)
    counts = np.bincount(manifest.label[rows], minlength=len(manifest.classes)).tolist()
    return {
        "asked": len(asked),
        "evaluated": len(rows),
        "per_class": dict(zip(manifest.classes, counts, strict=True)),
        "left_out_exact": int(np.isin(copies.exact, asked).sum()),
        "left_out_near": int(np.isin(copies.near, asked).sum()),
        "near_means": f"at most {NEAR_BITS} of 256 bits of a gradient hash differ",
        "selection": len(selection),
        "selection_is_evaluated": not len(other),
    }


def stratified(rows: Rows, label: NDArray[np.int64], share: float) -> Rows:
    """Draw a share of every class, at least one image each, with seed 0; ascending."""
    shuffled = np.random.default_rng(0).permutation(rows)
    parts = []
    for index in np.unique(label[rows]):
        mine = shuffled[label[shuffled] == index]
        parts.append(mine[: max(1, round(share * len(mine)))])
    return np.sort(np.concatenate(parts))
